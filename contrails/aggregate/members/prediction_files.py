"""Files of predictions: rounded probabilities by record, written as they come and resumed after a kill.

HDF5: `/probabilities` uint16 (N, H, W), p = value / 65535; `/record_id`; `/member`, who predicted the row; and
`/digests/probabilities` uint8 (N, 32), the SHA-256 of every row. A row counts where its digest fits, so whatever a kill
or a full disk left half written is predicted again. Readable by h5py and xarray without this package.
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
"""From rows of a dataset to batches of them, each with its probabilities, uint16 (B, H, W)."""


@dataclass(frozen=True)
class Wanted:
    """What a file of predictions is to hold.

    `rows` are those of the dataset, int64 (N,); `about` names all that decides the values: another value, another file.
    """

    rows: np.ndarray
    record_ids: tuple[str, ...]
    shape: tuple[int, int]
    member: str
    about: dict[str, Any]


def complete(path: Path, wanted: Wanted, predict: PredictRows, description: str) -> np.ndarray:
    """Return all probabilities that are wanted, mapped; those that the file lacks are predicted into it first.

    Raises:
        RunError: another process writes the file.
        StorageError: the disk is full; what was written stays.

    Shape:
        uint16 (N, H, W) in the order of `wanted.rows`.
    """
    busy = f"another process predicts into {path}; wait for it, or end it, then run the same command again"
    with sole_writer(path.with_name(f".{path.name}.lock"), busy):
        if not is_of(path, wanted):
            _create(path, wanted)
        missing = _missing(path)
        if len(missing):
            _fill(path, wanted, missing, predict, description)
    return _map(path, "probabilities")


def read_predictions(path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Return the records of a finished file and their probabilities, mapped, uint16 (N, H, W).

    Raises:
        DataError: it is no file of predictions, or not all of them are in it.
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
        raise DataError(f"{path} lacks {missing} of {len(record_ids)} predictions; go on with {made_by(path)}")
    return record_ids, _map(path, "probabilities")


def is_complete(path: Path, wanted: Wanted) -> bool:
    """Return whether a file holds all that is wanted."""
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
    """Return whether a file holds, or was begun to hold, what is wanted."""
    if not path.is_file():
        return False
    try:
        with h5py.File(path, "r", locking=False) as file:
            return bool(file.attrs.get("about") == _identity(wanted))
    except OSError:  # no HDF5: it is made anew, as predictions can be
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
    """Return the indices of the rows whose digest does not fit, int64."""
    offsets = _row_offsets(path)
    with h5py.File(path, "r", locking=False) as file:
        count = len(file["record_id"])
    # read, not mapped: on a full disk a mapped page that nobody has written yet is a signal, not an error
    with storage(path, "read"), path.open("rb") as file:

        def row(name: str, index: int) -> bytes:
            offset, size = offsets[name]
            return os.pread(file.fileno(), size, offset + index * size)

        values, digests = _ARRAYS
        return np.array(
            [i for i in range(count) if hashlib.sha256(row(values, i)).digest() != row(digests, i)], np.int64
        )


def _row_offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Return offset and bytes a row of each array."""
    with h5py.File(path, "r", locking=False) as file:
        return {
            name: (file[name].id.get_offset(), file[name].dtype.itemsize * int(np.prod(file[name].shape[1:])))
            for name in _ARRAYS
        }


def _map(path: Path, name: str) -> np.ndarray:
    with h5py.File(path, "r", locking=False) as file:
        shape, dtype, offset = file[name].shape, file[name].dtype, file[name].id.get_offset()
    return np.memmap(path, dtype, "r", offset, shape)
