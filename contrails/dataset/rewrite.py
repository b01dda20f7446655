"""Repair of a dataset file that another program has rewritten: chunked, compressed or with links to other files.

HDF5 reads every row, however it is stored, and the row gets a new digest. Records whose rows do not match the old
digests are reported: they were changed on purpose, or are damaged.
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
    """The result of a repair.

    Attributes:
        num_records: number of records.
        changed: ids of records with rows that do not match their old digests.
        made: False if the file existed already.
        shard: the shard that the file holds; None for a whole dataset.
    """

    num_records: int
    changed: tuple[str, ...]
    made: bool
    shard: Shard | None


def rewrite(path: Path, out: Path) -> Rewritten:
    """Write the rows of the file `path` to the dataset file `out`, with new digests.

    Raises:
        DataError: `path` is no dataset file or is incomplete; `out` exists with other content.
        StorageError: the folder cannot be written or is full.
    """
    with storage(out, "read"):
        if path.exists() and out.exists() and out.samefile(path):
            raise DataError(f"{out} is the input file, which is never overwritten; give another name with -o")
    dataset = _read(path)
    header = header_of(dataset)
    lock = out.with_name(f".{out.name}.lock")
    with sole_writer(lock, f"another contrails data join is writing {out.name}; wait for it"):
        made = not out.exists()
        digests = _write(path, out, header, dataset) if made else dict(_digests(path, header, dataset.annotators))
        if not made:
            _require_same(path, out, header, digests)
    changed = []
    for row, record_id in enumerate(header.record_ids):
        if any(rows[row].tobytes() != digests[name][row] for name, rows in dataset.digests.items()):
            changed.append(record_id)
    return Rewritten(dataset.num_records, tuple(changed), made, header.shard)


def _read(path: Path) -> Dataset:
    """Read the header and the small arrays of a file; large arrays have only their shapes and types."""

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
            f"{path}: expected /scene and /placement, which locate its records, found neither: the program that wrote "
            "the file left out its groups; prepare the raw data again"
        )
    return dataset


def _require_written(path: Path, name: str, array: h5py.Dataset) -> None:
    """Check that an array was written completely, here or in other files; HDF5 reads missing data as zeros."""
    folder, properties = Path(array.file.filename).parent, array.id.get_create_plist()
    for source, offset, size in array.external or ():
        _require_source(path, name, folder / source)
        needed = offset + min(size, array.nbytes)  # the size can be H5F_UNLIMITED
        if (found := (folder / source).stat().st_size) < needed:
            raise DataError(
                f"{path}: expected {needed} bytes of /{name} in {source}, found {found}; put that file back"
            )
    if array.is_virtual:
        _require_covered(path, name, array, folder)
    elif array.chunks:
        number = math.prod(-(-side // chunk) for side, chunk in zip(array.shape, array.chunks, strict=True))
        if (found := array.id.get_num_chunks()) < number:
            raise DataError(f"{path}: expected {number} chunks of /{name}, found {found}; {_AGAIN}")
    elif properties.get_layout() == h5py.h5d.CONTIGUOUS and not array.external and array.id.get_offset() is None:
        raise DataError(f"{path}: /{name} was never written; {_AGAIN}")


def _require_covered(path: Path, name: str, array: h5py.Dataset, folder: Path) -> None:
    """Check that the source datasets of a virtual array exist and cover all of it."""
    covered = 0
    for source in array.virtual_sources():
        other = Path(array.file.filename) if source.file_name == "." else folder / source.file_name
        _require_source(path, name, other)
        with h5py.File(other, "r", locking=False) as file:
            part = file.get(source.dset_name)
            if not isinstance(part, h5py.Dataset):
                raise DataError(
                    f"{path}: expected the array {source.dset_name} of /{name} in {other}, found none; put back the "
                    "file that has it"
                )
            if not _holds(part, source):
                raise DataError(
                    f"{path}: expected a larger array {source.dset_name} for /{name} in {other}, found {part.shape}; "
                    "put back the complete file"
                )
            _require_written(path, name, part)
        covered += source.vspace.get_select_npoints()
    if covered < array.size:
        raise DataError(
            f"{path}: expected other files with all {array.size:,} values of /{name}, found {covered:,}; {_AGAIN}"
        )


def _holds(part: h5py.Dataset, source: Any) -> bool:
    """Return whether an array holds everything that a virtual array maps of it."""
    if source.src_space.get_select_type() == h5py.h5s.SEL_ALL:  # HDF5 stores no extent for such a selection
        return bool(part.size >= source.vspace.get_select_npoints())
    _, last = source.src_space.get_select_bounds()
    return all(end < side for end, side in zip(last, part.shape, strict=True))


def _require_source(path: Path, name: str, source: Path) -> None:
    if not source.exists():
        raise DataError(f"{path}: expected /{name} in {source}, found no such file; put that file back")


def _require_votes(path: Path, record_id: str, votes: np.ndarray, annotators: int) -> None:
    """Check that no pixel of a record has more votes than annotators."""
    if (most := int(votes[votes != IGNORE].max(initial=0))) > annotators:
        raise DataError(
            f"{path}, record {record_id}: expected at most {annotators} votes, one per annotator, found {most}; "
            f"{_AGAIN}"
        )


def _rows(path: Path, header: Header, annotators: np.ndarray) -> Iterator[dict[str, bytes]]:
    """Yield the bytes of each row of each array, in the byte order of a dataset file."""
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
    """Return the attributes of a file, such as the origin of its pseudo-labels, without those that netCDF adds."""
    with h5py.File(path, "r", locking=False) as file:
        return {name: file.attrs[name] for name in sorted(file.attrs) if not name.startswith("_")}


def _require_same(path: Path, out: Path, header: Header, digests: Mapping[str, list[bytes]]) -> None:
    existing = open_dataset(out)
    found = {name: [row.tobytes() for row in rows] for name, rows in existing.digests.items()}
    if header_of(existing).differences(header) or found != digests:
        raise DataError(
            f"{out} exists and differs from {path}; an existing dataset file is never overwritten: choose another "
            "name, or remove it"
        )
    require_rows(existing, f"remove it, and run the same command again with {path} in its folder")
