"""The byte layout of a dataset file: its header, the offsets of its arrays, and writing of rows.

Arrays are allocated before any row is written, so that processes can write disjoint rows in any order. Packing and
joining both create their files here, so that equal headers and rows give byte-identical files.
"""

import hashlib
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np

from contrails.dataset.rle import DEFAULT, Convention
from contrails.dataset.sparse import SparseFile
from contrails.dataset.store import FORMAT, IGNORE, VERSION, Dataset, Placement, Scene
from contrails.files import storage, to_json

_PAGE = 4096

_LATER = {"control", "ending", "label", "label_column"}
"""Fields that files of the first versions lack. If empty they are left out of the digest, which then stays the same."""

RowOffsets = dict[str, tuple[int, int]]
"""Offset in the file and bytes per row of each array."""


@dataclass(frozen=True)
class Shard:
    """The number of a shard, from 1 to `count`, and the digest `plan` of the whole file's header."""

    index: int
    count: int
    plan: str


@dataclass(frozen=True)
class Values:
    """Type and scale of the bands: value = integer * scale_factor + add_offset, in `units`."""

    dtype: str
    scale_factor: float
    add_offset: float
    units: str


@dataclass(frozen=True)
class Header:
    """Everything that determines the bytes of a file except its rows.

    `size` is (height, width); `source` describes the raw data; `options` are the options of `contrails prepare` that
    the other fields do not hold; `placements` has one entry per record, or none if records are whole images.
    """

    split: str
    band_names: tuple[str, ...]
    frames: tuple[int, ...]
    size: tuple[int, int]
    with_marks: bool
    record_ids: tuple[str, ...]
    groups: tuple[str, ...]
    timestamps: tuple[float, ...]
    values: Values
    source: str
    options: str = ""
    label_frame: int = 0
    label_offset_px: tuple[float, float] = (0.0, 0.0)
    convention: Convention = DEFAULT
    scenes: tuple[Scene, ...] = ()
    placements: tuple[Placement, ...] = ()
    shard: Shard | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the header without empty later fields, so that shards of old and new versions can be joined."""
        content = asdict(self, dict_factory=_without_later)
        return hashlib.sha256(to_json([FORMAT, VERSION, content]).encode()).hexdigest()

    def slice(self, index: int, count: int) -> "Header":
        """Return the header of shard `index` of `count`: a contiguous slice of the records, nearly equal in size."""
        first, last = shard_rows(len(self.record_ids), index, count)
        return replace(
            self,
            record_ids=self.record_ids[first:last],
            groups=self.groups[first:last],
            timestamps=self.timestamps[first:last],
            placements=self.placements[first:last],
            shard=Shard(index, count, self.digest),
        )

    def differences(self, other: "Header") -> list[str]:
        """Return the names of the fields that differ; unknown times (NaN) are equal."""
        mine, others = asdict(self), asdict(other)
        return [field.name for field in fields(self) if to_json(mine[field.name]) != to_json(others[field.name])]


def _without_later(fields_of: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in fields_of if value or name not in _LATER}


def read_options(text: str) -> dict[str, str]:
    """Return the options in a header, such as {"layout": "scenes", "tile": "512"}."""
    words = shlex.split(text.replace("--layout ", "--layout=", 1))
    return dict(word.removeprefix("--").split("=", 1) for word in words)


def target_of(dataset: Dataset) -> str:
    """Return what the masks of a dataset show: --target-name, else their class, else the usual name of the layout."""
    options = read_options(dataset.options)
    usual = "contrail" if "layout" not in options else "positive"
    return options.get("target-name") or dataset.convention.label or usual


def shard_rows(num_records: int, index: int, count: int) -> tuple[int, int]:
    """Return the first row of a shard and the one after its last."""
    return num_records * (index - 1) // count, num_records * index // count


def shard_path(out: Path, index: int, count: int) -> Path:
    """Return the path of a shard of `out`, such as data/train-2of5.h5 for data/train.h5."""
    return out.with_name(f"{out.stem}-{index}of{count}{out.suffix}")


def header_of(dataset: Dataset) -> Header:
    """Return the header that a dataset file was made with."""
    height, width = dataset.bands.shape[3:]
    return Header(
        split=dataset.split,
        band_names=dataset.band_names,
        frames=dataset.frames,
        size=(height, width),
        with_marks=dataset.marks is not None,
        record_ids=dataset.record_ids,
        groups=dataset.groups,
        timestamps=tuple(dataset.timestamps.tolist()),
        values=values_in(dataset),
        source=dataset.source,
        options=dataset.options,
        label_frame=dataset.label_frame,
        label_offset_px=dataset.label_offset_px,
        convention=dataset.convention,
        scenes=dataset.scenes,
        placements=dataset.placements,
        shard=_shard_of(dataset.path),
    )


def values_in(dataset: Dataset) -> Values:
    """Return type and scale of the bands of a dataset."""
    return Values(dataset.bands.dtype.name, dataset.scale_factor, dataset.add_offset, dataset.units)


def _shard_of(path: Path) -> Shard | None:
    with h5py.File(path, "r", locking=False) as file:
        if not {"shard", "plan"} <= set(file.attrs):
            return None
        index, count = file.attrs["shard"]
        return Shard(int(index), int(count), str(file.attrs["plan"]))


def create(header: Header, path: Path, attributes: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Create the file with all arrays allocated and page-aligned, and their attributes.

    Args:
        header: content of the file except its rows.
        path: the file to create.
        attributes: further attributes of the file; those of the header take precedence.
    """
    count = len(header.record_ids)
    with new_file(path, alignment_threshold=_PAGE // 2, alignment_interval=_PAGE) as file:
        _describe(file, header)
        file.attrs.update({name: value for name, value in attributes.items() if name not in file.attrs})
        shape = (count, len(header.frames), len(header.band_names), *header.size)
        values = header.values
        bands = allocate(file, "bands", shape, np.dtype(values.dtype).newbyteorder("<").str)
        bands.attrs.update(scale_factor=values.scale_factor, add_offset=values.add_offset, units=values.units)
        votes = allocate(file, "votes", (count, *header.size), "u1")
        votes.attrs.update(label_offset_px=header.label_offset_px, label_frame=header.label_frame)
        votes.attrs.update(long_name="annotators that marked the pixel; none: it does not count")
        votes.attrs["_FillValue"] = np.uint8(IGNORE)
        names = ["bands", "votes"]
        if header.with_marks:
            marks = allocate(file, "marks", (count, *header.size), "<u2")
            marks.attrs.update(long_name="which annotators marked the pixel", flag_masks=1 << np.arange(16, dtype="u2"))
            marks.attrs["flag_meanings"] = " ".join(f"annotator_{number}" for number in range(16))
            names.append("marks")
        annotators = allocate(file, "annotators", (count,), "u1")
        annotators.attrs.update(long_name="annotators that looked at the record", flag_values=np.zeros(1, np.uint8))
        annotators.attrs["flag_meanings"] = "unlabelled"
        for name in names:
            allocate(file, f"digests/{name}", (count, 32), "u1")
        file["digests"].attrs["long_name"] = "SHA-256 of each row of the arrays"
        strings = h5py.string_dtype()
        ids = file.create_dataset("record_id", data=header.record_ids, dtype=strings)
        group = file.create_dataset("group", data=header.groups, dtype=strings)
        timestamp = file.create_dataset("timestamp", data=np.array(header.timestamps))
        timestamp.attrs["units"] = "seconds since 1970-01-01"
        if header.placements:
            _write_placements(file, header)
        _name_axes(file, ids, [bands, votes, annotators, group, timestamp, *(file[n] for n in names[2:])])


@contextmanager
def new_file(path: Path, **options: int) -> Iterator[h5py.File]:
    """Yield a new HDF5 file in RAM and write it to `path` after the body; `options` are those of h5py."""
    draft = SparseFile()
    with h5py.File(draft, "w", **options) as file:
        yield file
    draft.save(path)


def row_offsets(path: Path) -> RowOffsets:
    """Return the offset and the row size of each array in a file."""
    with h5py.File(path, "r", locking=False) as file:
        names = ["bands", "votes", "annotators", *(f"digests/{name}" for name in file["digests"])]
        names += ["marks"] if "marks" in file else []
        return {
            name: (file[name].id.get_offset(), file[name].dtype.itemsize * int(np.prod(file[name].shape[1:])))
            for name in names
        }


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Yield a descriptor for writing rows of a file, and flush it to the disk (fsync) afterwards."""
    with storage(path):
        descriptor = os.open(path, os.O_WRONLY)
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_row(descriptor: int, offsets: tuple[int, int], row: int, payload: bytes | memoryview) -> None:
    """Write a row of an array; `offsets` are the offset of the array in the file and its bytes per row."""
    offset, size = offsets
    assert len(payload) == size
    _write_all(descriptor, payload, offset + row * size)


def write_columns(path: Path, annotators: bytes, digests: Mapping[str, bytes]) -> None:
    """Write the columns that are known only after all rows: annotators (1 byte per record), digests (32 bytes each)."""
    found = row_offsets(path)
    with opened(path) as descriptor:
        for name, column in {"annotators": annotators, **{f"digests/{k}": v for k, v in digests.items()}}.items():
            _write_all(descriptor, column, found[name][0])


def _describe(file: h5py.File, header: Header) -> None:
    file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
    file.attrs["Conventions"] = "CF-1.11"
    file.attrs["source"], file.attrs["options"] = header.source, header.options
    file.attrs["split"] = header.split
    file.attrs["band_names"] = list(header.band_names)
    file.attrs["frames"] = np.array(header.frames, np.int64)
    for name, value in asdict(header.convention).items():
        file.attrs[f"rle_{name}"] = value
    if header.shard:
        file.attrs["shard"] = np.array([header.shard.index, header.shard.count], np.int64)
        file.attrs["plan"] = header.shard.plan


def _write_placements(file: h5py.File, header: Header) -> None:
    """Write the placement of each record in its scene; in groups, so that xarray needs no names for these axes."""
    file.create_group("placement").attrs["long_name"] = "which part of which scene a record shows, in pixels"
    file.create_group("scene").attrs["long_name"] = "whole images; transform: from (column, row) to coordinates"
    for field in fields(Placement):
        file[f"placement/{field.name}"] = np.array([getattr(p, field.name) for p in header.placements], np.int64)
    for field in fields(Scene):
        column = [getattr(scene, field.name) for scene in header.scenes]
        if field.name == "control" and not any(column):
            continue  # the first versions had no such column, and equal content must give equal bytes
        kind = h5py.string_dtype() if field.type is str else np.float64 if field.name == "transform" else np.int64
        file.create_dataset(f"scene/{field.name}", data=column, dtype=kind)


def _name_axes(file: h5py.File, ids: h5py.Dataset, arrays: list[h5py.Dataset]) -> None:
    """Attach dimension scales, from which xarray reads the names of axes and bands."""
    sizes = {"frame": np.array(file.attrs["frames"])}
    sizes |= {"y": np.arange(file["bands"].shape[3]), "x": np.arange(file["bands"].shape[4])}
    scales = {"record_id": ids} | {name: file.create_dataset(name, data=values) for name, values in sizes.items()}
    scales["band"] = file.create_dataset("band", data=file.attrs["band_names"], dtype=h5py.string_dtype())
    for name, scale in scales.items():
        scale.make_scale(name)
    for array in arrays:
        axes = {5: ("record_id", "frame", "band", "y", "x"), 3: ("record_id", "y", "x"), 1: ("record_id",)}[array.ndim]
        for axis, name in enumerate(axes):
            array.dims[axis].attach_scale(scales[name])


def allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
    """Create a contiguous array with its offset fixed at once (early allocation) and without filling it."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)  # times would make equal content differ in bytes
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, properties, links)
    return file[name]


def _write_all(descriptor: int, payload: bytes | memoryview, offset: int) -> None:
    view = memoryview(payload)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
