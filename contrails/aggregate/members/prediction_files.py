"""Files of predictions: rounded probabilities by record, which are resumed after a kill.

HDF5: `/probabilities` uint16 (N, H, W), p = value / 65535; `/record_id`; `/member`, the member that predicted the row;
`/digests/probabilities` uint8 (N, 32), the SHA-256 of every row. A row is valid only if it matches its digest, so rows
that a kill or a full disk left half written are predicted again. h5py and xarray can read it without this package.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from contrails.aggregate.options import made_by
from contrails.dataset.layout import allocate, new_file, opened, write_row
from contrails.errors import DataError
from contrails.files import atomic_path, storage, to_json
from contrails.locks import sole_writer
from contrails.progress import bar

FORMAT = "contrails-predictions"
VERSION = 1
_ARRAYS = ("probabilities", "digests/probabilities")

PredictRows = Callable[[np.ndarray], Iterator[tuple[np.ndarray, np.ndarray]]]
"""A function from rows of a dataset to batches of rows, each with its probabilities, uint16 (B, H, W)."""


@dataclass(frozen=True)
class Wanted:
    """Description of a file of predictions.

    `rows` are rows of the dataset, int64 (N,). `about` has everything that determines the values; if it differs, the
    file is made again.
    """

    rows: np.ndarray
    record_ids: tuple[str, ...]
    shape: tuple[int, int]
    member: str
    about: dict[str, Any]


def complete(path: Path, wanted: Wanted, predict: PredictRows, description: str) -> np.ndarray:
    """Return all wanted probabilities, memory-mapped, after predicting those that the file lacks.

    Raises:
        RunError: another process writes the file.
        StorageError: the disk is full; finished rows are kept.

    Shape:
        uint16 (N, H, W) in the order of `wanted.rows`.
    """
    busy = f"another process predicts into {path}; wait for it, or stop it, then run the same command again"
    with sole_writer(path.with_name(f".{path.name}.lock"), busy):
        if not is_of(path, wanted):
            _create(path, wanted)
        missing = _missing(path)
        if len(missing):
            _fill(path, wanted, missing, predict, description)
    return _map(path, "probabilities")


def read_predictions(path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the record ids of a finished file and their probabilities, memory-mapped, uint16 (N, H, W).

    Raises:
        DataError: it is no file of predictions, or lacks some.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            found = file.attrs.get("format"), file.attrs.get("version")
            if found != (FORMAT, VERSION):
                raise DataError(
                    f"{path}: expected format '{FORMAT}' version {VERSION}, found {found}; make it with {made_by(path)}"
                )
            record_ids = tuple(file["record_id"].asstr()[:])
        missing = len(_missing(path))
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} is no complete file of predictions ({error}); make it with {made_by(path)}") from error
    if missing:
        raise DataError(f"{path} lacks {missing} of {len(record_ids)} predictions; resume with {made_by(path)}")
    return record_ids, _map(path, "probabilities")


def is_complete(path: Path, wanted: Wanted) -> bool:
    """Return whether a file holds all wanted predictions."""
    return is_of(path, wanted) and not len(_missing(path))


def _fill(path: Path, wanted: Wanted, missing: np.ndarray, predict: PredictRows, description: str) -> None:
    offsets = _row_offsets(path)
    index_of = {int(row): index for index, row in enumerate(wanted.rows)}
    done = len(wanted.rows) - len(missing)
    with bar(description, len(wanted.rows), done=done) as advance, opened(path) as descriptor:
        for rows, probabilities in predict(wanted.rows[missing]):
            for row, image in zip(rows, probabilities, strict=True):
                payload = np.ascontiguousarray(image, "<u2").tobytes()
                write_row(descriptor, offsets["probabilities"], index_of[int(row)], payload)
                digest = hashlib.sha256(payload).digest()
                write_row(descriptor, offsets["digests/probabilities"], index_of[int(row)], digest)
            advance(len(rows))


def is_of(path: Path, wanted: Wanted) -> bool:
    """Return whether a file was created for these predictions; it may be incomplete."""
    if not path.is_file():
        return False
    try:
        with h5py.File(path, "r", locking=False) as file:
            return bool(file.attrs.get("about") == _identity(wanted))
    except OSError:  # not an HDF5 file: it is replaced, since predictions can be made again
        return False


def _identity(wanted: Wanted) -> str:
    ids = hashlib.sha256(to_json(wanted.record_ids).encode()).hexdigest()
    return to_json([FORMAT, VERSION, wanted.member, wanted.shape, ids, wanted.about])


def _create(path: Path, wanted: Wanted) -> None:
    count = len(wanted.record_ids)
    with atomic_path(path) as temporary, new_file(temporary) as file:
        file.attrs["format"], file.attrs["version"], file.attrs["about"] = FORMAT, VERSION, _identity(wanted)
        array = allocate(file, "probabilities", (count, *wanted.shape), "<u2")
        array.attrs["scale_factor"] = 1 / 65_535
        allocate(file, "digests/probabilities", (count, 32), "u1")
        strings = h5py.string_dtype()
        file.create_dataset("record_id", data=list(wanted.record_ids), dtype=strings, shape=(count,))
        file.create_dataset("member", data=[wanted.member] * count, dtype=strings, shape=(count,))


def _missing(path: Path) -> np.ndarray:
    """Return the indices of the rows that do not match their digest, int64."""
    offsets = _row_offsets(path)
    with h5py.File(path, "r", locking=False) as file:
        count = len(file["record_id"])
    # read, not mapped: on a full disk, touching a page that was never written raises SIGBUS instead of an error
    with storage(path, "read"), path.open("rb") as file:

        def row(name: str, index: int) -> bytes:
            offset, size = offsets[name]
            return os.pread(file.fileno(), size, offset + index * size)

        values, digests = _ARRAYS
        return np.array(
            [i for i in range(count) if hashlib.sha256(row(values, i)).digest() != row(digests, i)], np.int64
        )


def _row_offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Return the offset of each array in the file and its bytes per row."""
    with h5py.File(path, "r", locking=False) as file:
        return {
            name: (file[name].id.get_offset(), file[name].dtype.itemsize * int(np.prod(file[name].shape[1:])))
            for name in _ARRAYS
        }


def _map(path: Path, name: str) -> np.ndarray:
    with h5py.File(path, "r", locking=False) as file:
        shape, dtype, offset = file[name].shape, file[name].dtype, file[name].id.get_offset()
    return np.memmap(path, dtype, "r", offset, shape)
