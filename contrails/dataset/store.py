"""The dataset file, version 1: its names and attributes, and how it is opened.

There is one HDF5 file per split. `/bands` int16 (N, T, C, H, W), `/votes` uint8 (N, H, W), optionally `/marks` uint16
(N, H, W), and the small arrays below are contiguous and page-aligned, so that they can be mapped from the file. Opening
reads only the header, and all folds on a node share one copy in the page cache. Any HDF5 reader can read the file.
`/digests/<array>` uint8 (N, 32) holds the SHA-256 of every row. An existing file is never overwritten.

For other imagery `/bands` can be uint8, uint16 or int16, and records can be tiles or padded images: `/placement`
locates each record in its scene, and `/scene` holds the size of each scene and its location on Earth.
"""

import hashlib
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from contrails.dataset.mapping import KINDS, map_array, repaired_by, require_own
from contrails.dataset.rle import DEFAULT, Convention
from contrails.errors import DataError, RecipeError, choices
from contrails.files import storage, to_json

FORMAT = "contrails-dataset"
VERSION = 1
DIGESTED = ("bands", "votes", "marks")
"""Arrays with a digest per row; marks are optional."""

IGNORE = 255
"""Value in `votes` of pixels that are ignored."""

NOWHERE = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""The transform of a scene without a georeference: the identity."""

_LATER = ("rle_ending", "rle_label", "rle_label_column")
"""Attributes that files of the first versions lack."""

_REQUIRED = ("bands", "votes", "annotators", "record_id", "group", "timestamp")


@dataclass(frozen=True)
class Scene:
    """An image that was cut into records.

    `transform` maps (column, row) to coordinates, as rasterio's Affine(a, b, c, d, e, f). `crs` is the WKT of the
    coordinate system, "" if unknown. `subset` is the list of scenes (train, val or test) that names it, or "".
    `control` holds ground control points or rational polynomials as JSON, for images without an affine transform, or
    "".
    """

    name: str
    height: int
    width: int
    crs: str = ""
    transform: tuple[float, ...] = NOWHERE
    subset: str = ""
    control: str = ""


@dataclass(frozen=True)
class Placement:
    """The location of a record in its scene; its top left `height` x `width` pixels are image, the rest is padding."""

    scene: int
    row: int
    column: int
    height: int
    width: int


@dataclass(frozen=True)
class Dataset:
    """An open dataset file; the large arrays are mapped, not read.

    Shape:
        bands int16, uint8 or uint16 (N, T, C, H, W): value = bands * scale_factor + add_offset, in `units`; votes uint8
        (N, H, W), IGNORE = ignored pixel; marks uint16 (N, H, W) or None; annotators uint8 (N,), 0 = unlabelled;
        timestamps float64 (N,) in seconds, NaN = unknown; digests uint8 (N, 32) for each of bands, votes and marks;
        placements one per record, or none if records are whole images.
    """

    path: Path
    bands: np.ndarray
    votes: np.ndarray
    marks: np.ndarray | None
    annotators: np.ndarray
    record_ids: tuple[str, ...]
    groups: tuple[str, ...]
    timestamps: np.ndarray
    digests: dict[str, np.ndarray]
    band_names: tuple[str, ...]
    frames: tuple[int, ...]
    label_frame: int
    label_offset_px: tuple[float, float]
    scale_factor: float
    add_offset: float
    split: str
    units: str = "K"
    source: str = ""
    options: str = ""
    convention: Convention = DEFAULT
    scenes: tuple[Scene, ...] = ()
    placements: tuple[Placement, ...] = ()
    copy: Path | None = None
    """A byte-identical copy on this node or in RAM that is mapped instead of `path`."""

    @property
    def mapped(self) -> Path:
        """The file from which the large arrays are mapped."""
        return self.copy or self.path

    @property
    def num_records(self) -> int:
        return len(self.record_ids)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content; it does not depend on the path."""
        digest = hashlib.sha256()
        header = {
            "bands": self.band_names,
            "frames": self.frames,
            "label": [self.label_frame, *self.label_offset_px],
            "scale": [self.scale_factor, self.add_offset],
            "records": self.record_ids,
            "groups": self.groups,
        }
        if self.placements:
            # without control points the fingerprint is that of the first versions, which had no such field
            header["scenes"] = [astuple(scene)[: None if scene.control else -1] for scene in self.scenes]
            header["placements"] = [astuple(placement) for placement in self.placements]
        digest.update(to_json(header).encode())
        digest.update(self.timestamps.tobytes() + self.annotators.tobytes())
        for name, rows in self.digests.items():
            # the digest of an array is the SHA-256 of the digests of its rows, so that no data are read
            digest.update(name.encode() + hashlib.sha256(rows.tobytes()).digest())
        return digest.hexdigest()

    def rows(self, record_ids: tuple[str, ...]) -> np.ndarray:
        """Return the row of each record, int64.

        Raises:
            DataError: the file does not hold some of them.
        """
        position = self._position
        unknown = [record_id for record_id in record_ids if record_id not in position]
        if unknown:
            raise DataError(
                f"{self.path} does not hold {len(unknown)} of {len(record_ids)} records, such as {unknown[0]}; "
                f"{choices(unknown[0], self.record_ids[:5])}, ...; give the file list that was made for this file"
            )
        return np.array([position[record_id] for record_id in record_ids], dtype=np.int64)

    def frame_positions(self, frames: tuple[int, ...]) -> tuple[int, ...]:
        """Return the positions of frames along axis T; the labelled frame if `frames` is empty.

        Raises:
            RecipeError: the file does not hold one of the frames.
        """
        wanted = frames or (self.label_frame,)
        missing = [frame for frame in wanted if frame not in self.frames]
        if missing:
            raise RecipeError(
                f"data.frames = {list(wanted)}: expected frames of {self.path}, which holds {list(self.frames)}, found "
                f"{missing}; choose others, or prepare the dataset again with --frames"
            )
        return tuple(self.frames.index(frame) for frame in wanted)

    @property
    def whole_shapes(self) -> dict[str, tuple[int, int]]:
        """Height and width of each whole image by name: of scenes if records are parts of scenes, else of records."""
        if self.placements:
            numbers = sorted({placement.scene for placement in self.placements})
            scenes = [self.scenes[number] for number in numbers]
            return {scene.name: (scene.height, scene.width) for scene in scenes}
        height, width = self.votes.shape[1:]
        return dict.fromkeys(self.record_ids, (height, width))

    def whole(self, row: int) -> str:
        """Return the name of the whole image that a record belongs to."""
        return self.scenes[self.placements[row].scene].name if self.placements else self.record_ids[row]

    def subset(self, row: int) -> str:
        """Return the list (train, val or test) that names the scene of a record, or ""."""
        return self.scenes[self.placements[row].scene].subset if self.placements else ""

    def unpadded(self, row: int) -> tuple[slice, slice]:
        """Return the rows and columns of a record that are not padding."""
        if not self.placements:
            return slice(None), slice(None)
        return slice(self.placements[row].height), slice(self.placements[row].width)

    def hard(self, row: int) -> np.ndarray:
        """Return the pixels of a record that strictly more than half of its annotators marked, bool (H, W)."""
        votes, annotators = self.votes[row], self.annotators[row]
        positive: np.ndarray = (votes > annotators // 2) & (votes != IGNORE) & (annotators > 0)
        return positive

    def positive_pixels(self, rows: Iterable[int]) -> np.ndarray:
        """Return the number of `hard` pixels of each record, int64; reads the rows' votes."""
        return np.array([np.count_nonzero(self.hard(row)) for row in rows], np.int64)

    def positive_rate(self, rows: np.ndarray) -> float:
        """Return the fraction of the labelled pixels of all rows that are `hard`; reads the rows' votes.

        Raises:
            DataError: no pixel is `hard`.
        """
        labelled = [np.count_nonzero(self.votes[row] != IGNORE) for row in rows if self.annotators[row]]
        positive = int(self.positive_pixels(rows).sum())
        if not positive:
            raise DataError(
                f"{self.path}: expected training records with a positive pixel, found none among {len(rows)}, so their "
                "rate is 0; check dataset and file list, or recipe keys that use the rate (pos_weight, head_bias)"
            )
        return positive / sum(labelled)

    @cached_property
    def _position(self) -> dict[str, int]:
        return {record_id: row for row, record_id in enumerate(self.record_ids)}


def open_dataset(path: Path, copy: Path | None = None) -> Dataset:
    """Open a dataset file, reading only the header and the small arrays.

    Args:
        path: the file.
        copy: a byte-identical copy from which to map the large arrays.

    Raises:
        DataError: no such file, no HDF5, another format or version, chunked arrays, or a truncated file or damaged
            header.
        StorageError: the file may not be read.
    """
    with storage(path, "read"):
        if not path.is_file():
            raise DataError(f"expected a dataset file at {path}, found none; {made_from_raw(path)}")
        path.open("rb").close()  # so that a missing permission is a StorageError, not a damaged file
    with opened_file(path) as file:
        require_own(path, file)
        dataset = read_dataset(path, file, partial(map_array, copy or path))
    arrays = [name for name in DIGESTED if getattr(dataset, name) is not None]
    if missing := [name for name in arrays if name not in dataset.digests]:
        raise DataError(f"{path}: expected the digests of {', '.join(missing)}, found none; {repaired_by(path)}")
    return replace(dataset, copy=copy)


def made_from_raw(path: Path) -> str:
    """Return the advice for a missing dataset file."""
    if path.suffix.lower() == ".csv":
        return "that is the name of a file list: give the dataset file that it was made for"
    split = f" --split {path.stem}" if path.stem in ("validation", "test") else ""
    return f"make it with `contrails prepare RAW {shlex.quote(str(path))}{split}`"


@contextmanager
def opened_file(path: Path) -> Iterator[h5py.File]:
    """Open a dataset file for reading; errors of HDF5 become a DataError."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except OSError as error:
        raise DataError(
            f"{path}: expected a complete HDF5 file, found none ({error}); if it is being written, wait; otherwise "
            "prepare or copy it again"
        ) from error
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:  # h5py raises any of these
        raise DataError(
            f"{path}: expected the arrays and attributes of a dataset file, found a damaged or incomplete header "
            f"({error.args[0] if error.args else error}); copy the file again, or prepare it again"
        ) from error


def read_dataset(path: Path, file: h5py.File, array_of: Callable[[str, h5py.Dataset], np.ndarray]) -> Dataset:
    """Read an open file.

    Args:
        path: its path, for errors.
        file: the open file.
        array_of: returns an array for the name and the HDF5 dataset of each large array.

    Raises:
        DataError: another format or version, or an inconsistent content.
    """
    found = tuple(_value(file.attrs, name) if name in file.attrs else None for name in ("format", "version"))
    if found != (FORMAT, VERSION):
        raise DataError(
            f"{path}: expected format '{FORMAT}' version {VERSION}, found '{found[0]}' version {found[1]}; "
            "prepare the raw records again with this version of contrails"
        )
    missing = [name for name in _REQUIRED if name not in file]
    if missing:
        raise DataError(f"{path}: expected the arrays {', '.join(missing)}, found none; prepare it again")
    arrays = {name: array_of(name, file[name]) for name in DIGESTED if name in file}
    digests = {name: file[f"digests/{name}"][:] for name in arrays if f"digests/{name}" in file}
    bands, annotators, timestamps = file["bands"], file["annotators"][:], file["timestamp"][:]
    record_ids, groups = (tuple(file[name].asstr()[:]) for name in ("record_id", "group"))
    band_names = tuple(str(name) for name in np.atleast_1d(file.attrs["band_names"]))
    frames = tuple(int(frame) for frame in np.atleast_1d(file.attrs["frames"]))
    "".join(band_names).encode()  # h5py checks that arrays are UTF-8, but not attributes
    columns = (record_ids, annotators, groups, timestamps, *digests.values())
    sizes = {"N": {len(column) for column in columns}, "T": {len(frames)}, "C": {len(band_names)}}
    for name, array in arrays.items():
        for axis, length in zip(KINDS[name][1], array.shape, strict=True):
            sizes.setdefault(axis, set()).add(length)
    if any(len(found) > 1 for found in sizes.values()):
        raise DataError(
            f"{path}: expected arrays of one size, found that they differ in their number of records, frames, bands or "
            "pixels; prepare it again"
        )
    if len(set(record_ids)) < len(record_ids):
        twice = next(record_id for record_id, count in Counter(record_ids).items() if count > 1)
        raise DataError(
            f"{path}: expected each record once, found {twice} in several rows; the file was changed after it was "
            "written: copy it again, or prepare it again"
        )
    offset = file["votes"].attrs.get("label_offset_px", (0.0, 0.0))
    return Dataset(
        path=path,
        **{name: arrays.get(name) for name in DIGESTED},  # type: ignore[arg-type]
        annotators=annotators,
        record_ids=record_ids,
        groups=groups,
        timestamps=timestamps,
        digests=digests,
        band_names=band_names,
        frames=frames,
        label_frame=int(_value(file["votes"].attrs, "label_frame")),
        label_offset_px=(float(offset[0]), float(offset[1])),
        scale_factor=float(_value(bands.attrs, "scale_factor")),
        add_offset=float(_value(bands.attrs, "add_offset")),
        split=str(_value(file.attrs, "split")),
        units=str(_value(bands.attrs, "units")),
        source=str(_value(file.attrs, "source")),
        options=str(_value(file.attrs, "options")) if "options" in file.attrs else "",
        convention=_read_convention(file),
        scenes=_read_scenes(file),
        placements=_read_placements(path, file, len(record_ids)),
    )


def _value(attributes: Mapping[str, Any], name: str) -> Any:
    """Return an attribute; netCDF programs write text as bytes and a number as an array of one."""
    value = np.atleast_1d(attributes[name])[0]
    return value.decode() if isinstance(value, bytes) else value


def _read_convention(file: h5py.File) -> Convention:
    """Return the convention of the masks; files of the first versions have the default one."""
    if "rle_columns" not in file.attrs:
        return DEFAULT
    starts, order, empty = (str(_value(file.attrs, f"rle_{name}")) for name in ("starts", "order", "empty"))
    names, masks = file.attrs["rle_columns"]
    later = [_value(file.attrs, name) if name in file.attrs else "" for name in _LATER]
    return Convention(starts, order, empty, (str(names), str(masks)), *map(str, later))  # type: ignore[arg-type]


def _read_scenes(file: h5py.File) -> tuple[Scene, ...]:
    if "scene" not in file:
        return ()
    group = file["scene"]
    names, crs, subsets = (tuple(group[name].asstr()[:]) for name in ("name", "crs", "subset"))
    control = tuple(group["control"].asstr()[:]) if "control" in group else ("",) * len(names)
    sizes = (group[name][:].tolist() for name in ("height", "width"))
    rows = zip(names, *sizes, crs, map(tuple, group["transform"][:].tolist()), subsets, control, strict=True)
    return tuple(Scene(*row) for row in rows)


def _read_placements(path: Path, file: h5py.File, num_records: int) -> tuple[Placement, ...]:
    if "placement" not in file:
        return ()
    columns = [file["placement"][field.name][:].tolist() for field in fields(Placement)]
    if any(len(column) != num_records for column in columns) or max(columns[0]) >= len(file["scene/name"]):
        raise DataError(f"{path}: expected placements of its records and scenes, found others; prepare it again")
    return tuple(Placement(*row) for row in zip(*columns, strict=True))
