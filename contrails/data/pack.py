"""Raw records to a dataset file: several processes write disjoint rows of arrays that were laid out beforehand.

The file grows under `.<name>.part` with a journal beside it; a row counts as written once its data is flushed and
its digest stands in the journal. Killed at any moment and started again, packing goes on with the rows that are
missing, and the file ends in the same bytes as one made without interruption. It gets its name when it is complete.
"""

import fcntl
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from contrails.data.records import (
    LABEL_FRAME,
    LABEL_OFFSET_PX,
    RawRecord,
    bands_of,
    find_records,
    read_bands,
    read_label,
)
from contrails.data.store import FORMAT, VERSION, open_dataset
from contrails.errors import DataError, StorageError
from contrails.files import append_json_line, atomic_path, fsync, read_json_lines, storage, to_json
from contrails.progress import bar

SCALE_FACTOR, ADD_OFFSET = 0.01, 273.15
"""Kelvin = count * SCALE_FACTOR + ADD_OFFSET, so rounding costs at most half of 0.01 K."""

_ROWS_A_TASK = 32
_PAGE = 4096


@dataclass(frozen=True)
class Plan:
    """What goes into a file: equal plans make equal files."""

    root: str
    split: str
    bands: tuple[int, ...]
    frames: tuple[int, ...]
    size: tuple[int, int]
    with_marks: bool
    needs_label: bool
    records: tuple[RawRecord, ...]


def make_plan(root: Path, split: str, bands: Sequence[int] | None, frames: Sequence[int]) -> Plan:
    """Find the records of a split and decide what is packed; `bands` None means all that the first record has.

    Raises:
        DataError: the folder or its first record is not as expected.
    """
    records = find_records(root, split)
    chosen = tuple(bands) if bands is not None else bands_of(records[0])
    first = read_bands(records[0], chosen, frames)
    return Plan(
        root=str(root.resolve()),
        split=split,
        bands=chosen,
        frames=tuple(frames),
        size=(first.shape[2], first.shape[3]),
        with_marks=all(record.has_individual_masks for record in records),
        needs_label=split != "test",
        records=tuple(records),
    )


def pack(plan: Plan, out: Path, num_workers: int) -> bool:
    """Write the dataset file of a plan; return False if it was there already.

    Raises:
        DataError: a record is not as expected, or another file has this name.
        StorageError: the folder cannot be written or is full; what is packed stays for the next try.
    """
    if out.exists():
        _require_same(plan, out)
        return False
    part, journal = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.journal")
    with storage(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(journal):
        written = _resume(plan, part, journal)
        layout = _layout(part)
        _write_rows(plan, part, journal, layout, written, num_workers)
        _write_small(part, layout, written)
        with storage(out):
            part.replace(out)
            journal.unlink()
            fsync(out.parent)
    return True


@dataclass(frozen=True)
class _Row:
    """What the journal says of a finished row; digests are hexadecimal."""

    row: int
    annotators: int
    digests: dict[str, str]


_Layout = dict[str, tuple[int, int]]
"""Offset and bytes a row of each array, in the file."""


def _require_same(plan: Plan, out: Path) -> None:
    existing = open_dataset(out)
    wanted = (tuple(r.record_id for r in plan.records), tuple(f"b{band:02d}" for band in plan.bands), plan.frames)
    if (existing.record_ids, existing.band_names, existing.frames) != wanted or existing.split != plan.split:
        raise DataError(
            f"{out} exists and holds something else ({existing.num_records} records of '{existing.split}', bands "
            f"{', '.join(existing.band_names)}, frames {list(existing.frames)}); a dataset file is never rewritten: "
            "choose another name, or remove it"
        )


@contextmanager
def _locked(journal: Path) -> Iterator[None]:
    with storage(journal), journal.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another `contrails prepare` is writing {journal.name[1:-8]}; wait for it") from error
        yield


def _resume(plan: Plan, part: Path, journal: Path) -> dict[int, _Row]:
    """Return the rows that an earlier try of the same plan finished; begin anew where there is none."""
    identity = hashlib.sha256(to_json([FORMAT, VERSION, _jsonable(plan)]).encode()).hexdigest()
    entries = read_json_lines(journal)
    if part.exists() and entries and entries[0].get("plan") == identity:
        return {entry["row"]: _Row(**entry) for entry in entries[1:]}
    with storage(part):
        os.truncate(journal, 0)
        with atomic_path(part) as temporary:
            _create(plan, temporary)
    append_json_line(journal, {"plan": identity}, durable=True)
    return {}


def _jsonable(plan: Plan) -> dict[str, Any]:
    records = [(record.record_id, record.group, record.timestamp) for record in plan.records]
    return asdict(plan) | {"records": records}


def _create(plan: Plan, path: Path) -> None:
    """Lay out the file with all its arrays allocated and page-aligned, and the attributes that say what they are."""
    count, (height, width) = len(plan.records), plan.size
    with h5py.File(path, "w", alignment_threshold=_PAGE // 2, alignment_interval=_PAGE) as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        file.attrs["Conventions"] = "CF-1.11"
        file.attrs["source"] = "GOES-16 ABI, OpenContrails layout"
        file.attrs["split"] = plan.split
        file.attrs["band_names"] = [f"b{band:02d}" for band in plan.bands]
        file.attrs["frames"] = np.array(plan.frames, np.int64)
        shape = (count, len(plan.frames), len(plan.bands), height, width)
        bands = _allocate(file, "bands", shape, "<i2")
        bands.attrs.update(scale_factor=SCALE_FACTOR, add_offset=ADD_OFFSET, units="K")
        votes = _allocate(file, "votes", (count, height, width), "u1")
        votes.attrs.update(label_offset_px=LABEL_OFFSET_PX, label_frame=LABEL_FRAME)
        names = ["bands", "votes"]
        if plan.with_marks:
            _allocate(file, "marks", (count, height, width), "<u2")
            names.append("marks")
        annotators = _allocate(file, "annotators", (count,), "u1")
        for name in names:
            _allocate(file, f"digests/{name}", (count, 32), "u1")
        strings = h5py.string_dtype()
        ids = file.create_dataset("record_id", data=[r.record_id for r in plan.records], dtype=strings)
        group = file.create_dataset("group", data=[r.group for r in plan.records], dtype=strings)
        timestamp = file.create_dataset("timestamp", data=np.array([r.timestamp for r in plan.records]))
        timestamp.attrs["units"] = "seconds since 1970-01-01"
        _name_axes(file, ids, [bands, votes, annotators, group, timestamp, *(file[n] for n in names[2:])])


def _name_axes(file: h5py.File, ids: h5py.Dataset, arrays: list[h5py.Dataset]) -> None:
    """Attach dimension scales, so that xarray names the axes."""
    sizes = {"frame": np.array(file.attrs["frames"]), "band": np.arange(file["bands"].shape[2])}
    sizes |= {"y": np.arange(file["bands"].shape[3]), "x": np.arange(file["bands"].shape[4])}
    scales = {"record_id": ids} | {name: file.create_dataset(name, data=values) for name, values in sizes.items()}
    for name, scale in scales.items():
        scale.make_scale(name)
    for array in arrays:
        axes = {5: ("record_id", "frame", "band", "y", "x"), 3: ("record_id", "y", "x"), 1: ("record_id",)}[array.ndim]
        for axis, name in enumerate(axes):
            array.dims[axis].attach_scale(scales[name])


def _allocate(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> h5py.Dataset:
    """Create a contiguous array whose place in the file is fixed now and which nobody fills."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)  # equal content is equal bytes
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(np.dtype(dtype)), space, properties, links)
    return file[name]


def _layout(part: Path) -> _Layout:
    with h5py.File(part, "r", locking=False) as file:
        names = ["bands", "votes", "annotators", *(f"digests/{name}" for name in file["digests"])]
        names += ["marks"] if "marks" in file else []
        return {
            name: (file[name].id.get_offset(), file[name].dtype.itemsize * int(np.prod(file[name].shape[1:])))
            for name in names
        }


def _write_rows(
    plan: Plan, part: Path, journal: Path, layout: _Layout, written: dict[int, _Row], num_workers: int
) -> None:
    missing = [row for row in range(len(plan.records)) if row not in written]
    tasks = (missing[start : start + _ROWS_A_TASK] for start in range(0, len(missing), _ROWS_A_TASK))
    # forkserver: a worker starts from a clean process, whatever threads the caller has
    with (
        bar(f"packing {plan.split}", len(plan.records), done=len(written)) as advance,
        ProcessPoolExecutor(num_workers, get_context("forkserver"), _start_worker, (plan, part, layout)) as pool,
    ):
        try:
            # only a few tasks are under way, so that an error or Ctrl-C ends the work soon
            running = {pool.submit(_pack_rows, rows) for rows in itertools.islice(tasks, 2 * num_workers)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for rows in (future.result() for future in done):
                    for row in rows:
                        append_json_line(journal, asdict(row), durable=row is rows[-1])
                        written[row.row] = row
                    advance(len(rows))
                    running |= {pool.submit(_pack_rows, more) for more in itertools.islice(tasks, 1)}
        except BrokenProcessPool as error:
            raise StorageError(
                f"a process that packed {part.name} was killed, probably for memory; run the same command again"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


_worker: tuple[Plan, Path, _Layout]


def _start_worker(plan: Plan, part: Path, layout: _Layout) -> None:
    global _worker
    _worker = (plan, part, layout)


def _pack_rows(rows: list[int]) -> list[_Row]:
    """Read, pack and write rows in a worker process; return what the journal needs."""
    plan, part, layout = _worker
    with storage(part):
        descriptor = os.open(part, os.O_WRONLY)
        try:
            finished = [_pack_row(plan, descriptor, layout, row) for row in rows]
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
    return finished


def _pack_row(plan: Plan, descriptor: int, layout: _Layout, row: int) -> _Row:
    record = plan.records[row]
    arrays, annotators = pack_record(plan, record)
    digests = {}
    for name, array in arrays.items():
        offset, size = layout[name]
        payload = array.tobytes()
        assert len(payload) == size
        _write_all(descriptor, payload, offset + row * size)
        digests[name] = hashlib.sha256(payload).hexdigest()
    return _Row(row, annotators, digests)


def pack_record(plan: Plan, record: RawRecord) -> tuple[dict[str, np.ndarray], int]:
    """Return a record's row of each array, and the number of its annotators.

    Raises:
        DataError: the record is not as expected, or its temperatures do not fit into 16 bits.
    """
    kelvin = read_bands(record, plan.bands, plan.frames)
    if kelvin.shape[2:] != plan.size:
        raise DataError(
            f"record {record.record_id} ({record.path}) is {kelvin.shape[2:]} pixels large, the first one {plan.size}; "
            "leave it out, or prepare it into a file of its own"
        )
    counts = np.rint((kelvin - np.float32(ADD_OFFSET)) / np.float32(SCALE_FACTOR))
    if np.abs(counts).max() > np.iinfo(np.int16).max:
        raise DataError(
            f"record {record.record_id} ({record.path}): expected kelvin, found values from {kelvin.min():.1f} to "
            f"{kelvin.max():.1f}; get it again"
        )
    label = read_label(record, plan.size)
    if label is None and plan.needs_label:
        raise DataError(
            f"record {record.record_id} has no mask in {record.path}; expected human_individual_masks.npy or "
            f"human_pixel_masks.npy in '{plan.split}'; add it, or prepare unlabelled records with --split test"
        )
    arrays = {"bands": counts.astype("<i2"), "votes": label.votes if label else np.zeros(plan.size, np.uint8)}
    if plan.with_marks and label is not None:
        arrays["marks"] = label.marks.astype("<u2")
    return arrays, label.annotators if label else 0


def _write_small(part: Path, layout: _Layout, written: dict[int, _Row]) -> None:
    """Write what is known only when all rows are: annotators and digests."""
    rows = [written[row] for row in range(len(written))]
    columns = {"annotators": bytes(row.annotators for row in rows)}
    for name in rows[0].digests:
        columns[f"digests/{name}"] = b"".join(bytes.fromhex(row.digests[name]) for row in rows)
    with storage(part):
        descriptor = os.open(part, os.O_WRONLY)
        try:
            for name, payload in columns.items():
                _write_all(descriptor, payload, layout[name][0])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_all(descriptor: int, payload: bytes, offset: int) -> None:
    view = memoryview(payload)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
