"""A dataset file that another program wrote anew, chunked, compressed or with links to other files, as a file again.

Every row is read by HDF5, whatever way it is stored, and gets a new digest. What the old digests say of the rows is
told: rows may have been changed on purpose, or may be damaged.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from contrails.dataset.layout import Header, Shard, create, header_of, opened, row_offsets, write_columns, write_row
from contrails.dataset.mapping import links, require_kind
from contrails.dataset.store import DIGESTED, IGNORE, Dataset, open_dataset, opened_file, read_dataset
from contrails.dataset.verify import require_rows
from contrails.errors import DataError
from contrails.files import atomic_path, remove_leftovers, storage
from contrails.locks import sole_writer
from contrails.progress import bar

_AGAIN = "get the whole file again, or prepare the raw data again"


@dataclass(frozen=True)
class Rewritten:
    """What was written: `changed` records have rows that are not what their digests say; `made` is False where the file
    was there already; `shard` says which part of a dataset it is, where it is not a whole one."""

    num_records: int
    changed: tuple[str, ...]
    made: bool
    shard: Shard | None


def rewrite(path: Path, out: Path) -> Rewritten:
    """Write the rows of the file `path` into the dataset file `out`, with digests made anew.

    Raises:
        DataError: `path` is no dataset file, or lacks what belongs to it; `out` exists and holds something else.
        StorageError: the folder cannot be written or is full.
    """
    with storage(out, "read"):
        if path.exists() and out.exists() and out.samefile(path):
            raise DataError(f"{out} is the file that is read, which is never rewritten; give another name with -o")
    dataset = _read(path)
    header = header_of(dataset)
    lock = out.with_name(f".{out.name}.lock")
    with sole_writer(lock, f"another contrails data join is writing {out.name}; wait for it"):
        made = not out.exists()
        digests = _write(path, out, header, dataset) if made else dict(_digests(path, header, dataset.annotators))
        if not made:
            _require_same(path, out, header, digests)
    changed = tuple(
        record_id
        for row, record_id in enumerate(header.record_ids)
        if any(rows[row].tobytes() != digests[name][row] for name, rows in dataset.digests.items())
    )
    return Rewritten(dataset.num_records, changed, made, header.shard)


def _read(path: Path) -> Dataset:
    """Return what a file says of itself; of its large arrays only shapes and types."""

    def only_shape(name: str, array: h5py.Dataset) -> np.ndarray:
        require_kind(path, name, array)
        _require_written(path, name, array)
        return np.broadcast_to(np.zeros((), array.dtype.name), array.shape)

    with storage(path, "read"):
        path.open("rb").close()
    with opened_file(path) as file:
        links(path, file)
        dataset = read_dataset(path, file, only_shape)
    if "--layout" in dataset.options and not dataset.placements:
        raise DataError(
            f"{path} lacks /scene and /placement, which say where its records lie: the program that wrote it left the "
            "groups of the file out; prepare the raw data again"
        )
    return dataset


def _require_written(path: Path, name: str, array: h5py.Dataset) -> None:
    """Check that all of an array was written, here or in other files; HDF5 reads what is missing as zeros."""
    folder, properties = Path(array.file.filename).parent, array.id.get_create_plist()
    for source, offset, size in array.external or ():
        _require_source(path, name, folder / source)
        needed = offset + min(size, array.nbytes)  # a size may be unlimited
        if (found := (folder / source).stat().st_size) < needed:
            raise DataError(
                f"{path}: expected {needed} bytes of /{name} in {source}, found {found}; put that file back"
            )
    if array.is_virtual:
        _require_covered(path, name, array, folder)
    elif array.chunks:
        number = math.prod(-(-side // chunk) for side, chunk in zip(array.shape, array.chunks, strict=True))
        if (found := array.id.get_num_chunks()) < number:
            raise DataError(f"{path}: expected {number} chunks of /{name}, found {found} that were written; {_AGAIN}")
    elif properties.get_layout() == h5py.h5d.CONTIGUOUS and not array.external and array.id.get_offset() is None:
        raise DataError(f"{path}: /{name} was never written; {_AGAIN}")


def _require_covered(path: Path, name: str, array: h5py.Dataset, folder: Path) -> None:
    """Check that datasets of files in a folder are there, and make up all of a virtual array."""
    covered = 0
    for source in array.virtual_sources():
        other = Path(array.file.filename) if source.file_name == "." else folder / source.file_name
        _require_source(path, name, other)
        with h5py.File(other, "r", locking=False) as file:
            part = file.get(source.dset_name)
            if not isinstance(part, h5py.Dataset):
                raise DataError(
                    f"{path}: /{name} is made of {source.dset_name} in {other}, found no such array there; put back "
                    "the file that has it"
                )
            if not _holds(part, source):
                raise DataError(
                    f"{path}: /{name} is made of more than {source.dset_name} in {other} has, {part.shape}; put back "
                    "the file that has all of it"
                )
            _require_written(path, name, part)
        covered += source.vspace.get_select_npoints()
    if covered < array.size:
        raise DataError(
            f"{path}: expected other files to make up all of /{name}, found {covered:,} of {array.size:,} values; "
            f"{_AGAIN}"
        )


def _holds(part: h5py.Dataset, source: Any) -> bool:
    """Return whether an array has all that a virtual one takes of it."""
    if source.src_space.get_select_type() == h5py.h5s.SEL_ALL:  # whose extent HDF5 does not keep
        return bool(part.size >= source.vspace.get_select_npoints())
    _, last = source.src_space.get_select_bounds()
    return all(end < side for end, side in zip(last, part.shape, strict=True))


def _require_source(path: Path, name: str, source: Path) -> None:
    if not source.exists():
        raise DataError(f"{path}: /{name} is kept in {source}, which is not there; put that file back")


def _require_votes(path: Path, record_id: str, votes: np.ndarray, annotators: int) -> None:
    """Check that no pixel of a record has more votes than annotators."""
    if (most := int(votes[votes != IGNORE].max(initial=0))) > annotators:
        raise DataError(
            f"{path}, record {record_id}: expected at most {annotators} votes, as many as annotators, found {most}; "
            f"{_AGAIN}"
        )


def _rows(path: Path, header: Header, annotators: np.ndarray) -> Iterator[dict[str, bytes]]:
    """Yield the bytes of each row of each array, as a dataset file has them."""
    with h5py.File(path, "r", locking=False) as file, bar(f"reading {path.name}", len(header.record_ids)) as advance:
        arrays = {name: file[name] for name in DIGESTED if name in file}
        for row, record_id in enumerate(header.record_ids):
            try:
                values = {name: array[row] for name, array in arrays.items()}
            except OSError as error:
                raise DataError(f"{path}, record {record_id}: {error}; get the file again") from error
            _require_votes(path, record_id, values["votes"], int(annotators[row]))
            yield {
                name: np.ascontiguousarray(each, np.dtype(arrays[name].dtype.name).newbyteorder("<")).tobytes()
                for name, each in values.items()
            }
            advance(1)


def _digests(path: Path, header: Header, annotators: np.ndarray) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = {}
    for payloads in _rows(path, header, annotators):
        for name, payload in payloads.items():
            found.setdefault(name, []).append(hashlib.sha256(payload).digest())
    return found


def _write(path: Path, out: Path, header: Header, dataset: Dataset) -> dict[str, list[bytes]]:
    digests: dict[str, list[bytes]] = {}
    remove_leftovers(out)
    with atomic_path(out) as temporary:
        create(header, temporary, _attributes(path))
        where = row_offsets(temporary)
        with opened(temporary) as descriptor:
            for row, payloads in enumerate(_rows(path, header, dataset.annotators)):
                for name, payload in payloads.items():
                    write_row(descriptor, where[name], row, payload)
                    digests.setdefault(name, []).append(hashlib.sha256(payload).digest())
        annotators = bytes(dataset.annotators.tolist())
        write_columns(temporary, annotators, {name: b"".join(rows) for name, rows in digests.items()})
    return digests


def _attributes(path: Path) -> dict[str, Any]:
    """Return what a file says of itself, such as which member made its pseudo-labels, without netCDF's own notes."""
    with h5py.File(path, "r", locking=False) as file:
        return {name: file.attrs[name] for name in sorted(file.attrs) if not name.startswith("_")}


def _require_same(path: Path, out: Path, header: Header, digests: Mapping[str, list[bytes]]) -> None:
    existing = open_dataset(out)
    found = {name: [row.tobytes() for row in rows] for name, rows in existing.digests.items()}
    if header_of(existing).differences(header) or found != digests:
        raise DataError(
            f"{out} exists and holds something else than {path}; a dataset file is never rewritten: choose another "
            "name, or remove it"
        )
    require_rows(existing, f"remove it, and run the same command again while {path} is there")
