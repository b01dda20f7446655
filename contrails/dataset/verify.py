"""Verification of dataset files: the SHA-256 of every row is compared with the stored digest."""

import errno
import hashlib
import logging
import os
import shlex
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from contrails.dataset.layout import RowOffsets, row_offsets
from contrails.dataset.store import Dataset
from contrails.errors import DataError
from contrails.files import storage
from contrails.progress import bar

READ = ("bands", "votes")
"""Arrays that training reads; it does not use marks."""

_SHOWN = 20
_LOWEST = 19
"""The lowest priority (nice value), for a thread that uses only idle CPU time."""

log = logging.getLogger(__name__)
Poll = Callable[[], None]


def damaged_rows(dataset: Dataset, poll: Poll = lambda: None) -> Iterator[str]:
    """Yield "record R: /array ..." for every row that does not match its digest.

    `poll` is called after every record and may raise to stop.

    Raises:
        StorageError: a row cannot be read.
    """
    where = row_offsets(dataset.path)
    # read, not mapped: if the file is truncated meanwhile, its rows are reported instead of a SIGBUS
    with (
        bar("verifying", dataset.num_records) as advance,
        storage(dataset.path, "read"),
        dataset.path.open("rb") as file,
    ):
        for row in range(dataset.num_records):
            for name in _wrong(dataset, file.fileno(), where, row, tuple(dataset.digests)):
                yield _line(dataset, row, name)
            advance(1)
            poll()


def require_rows(dataset: Dataset, next_step: str) -> None:
    """Compare all rows of a file with their digests; `next_step` is the advice in the error.

    Raises:
        DataError: some rows do not match.
    """
    if damaged := list(damaged_rows(dataset)):
        raise DataError("\n".join([f"{dataset.path} is damaged; {next_step}:", *damaged[:_SHOWN]]))


def require_intact(dataset: Dataset, rows: np.ndarray) -> None:
    """Compare rows that were just read with their digests; arrays made in memory have none and are skipped.

    Raises:
        DataError: one of the rows does not match.
    """
    for row in rows:
        for name in (name for name in READ if name in dataset.digests):
            payload = np.ascontiguousarray(getattr(dataset, name)[row]).data.cast("B")
            if hashlib.sha256(payload).digest() != dataset.digests[name][row].tobytes():
                raise DataError(
                    f"{dataset.path} is damaged: {_line(dataset, row, name)}; {put_back(dataset.path)}, then run the "
                    "same command again"
                )


def put_back(path: Path) -> str:
    """Return the advice for a damaged file."""
    return f"restore the original file (`contrails data verify {shlex.quote(str(path))}` lists all damaged records)"


@dataclass(frozen=True)
class Damage:
    """A row of a dataset that does not match its digest, with the damaged arrays."""

    dataset: Dataset
    row: int
    arrays: tuple[str, ...]

    def __str__(self) -> str:
        return "; ".join(_line(self.dataset, self.row, name) for name in self.arrays)

    @property
    def is_in_copy_alone(self) -> bool:
        """Whether the row is intact in the file and damaged only in the copy that was read."""
        if self.dataset.copy is None:
            return False
        with storage(self.dataset.path, "read"), self.dataset.path.open("rb") as file:
            return not any(_wrong(self.dataset, file.fileno(), row_offsets(self.dataset.path), self.row, self.arrays))


class RowCheck:
    """Compares the rows that a training reads with their digests, once each, while it trains.

    It checks the bytes that are mapped: of the file, or of its copy on the node or in RAM. They are read into a buffer,
    so that the memory of this process does not grow by the size of the file. A thread of the lowest priority does this;
    `finish` checks the remaining rows. The folds of a job share their results in an anonymous file and begin at
    different rows, so that together they read each row once.

    `intact` is True when all rows match; `damage` is the first row that does not.
    """

    def __init__(
        self, files: Sequence[tuple[Dataset, np.ndarray]], begin: float = 0.0, shared: int | None = None
    ) -> None:
        """Open the files.

        Args:
            files: datasets, each with the rows to check, int64 (N,).
            begin: fraction of the rows after which to begin, from 0 to 1.
            shared: descriptor of the anonymous file that the folds of a job share, for the first dataset.
        """
        self.intact, self.damage = False, cast(Damage | None, None)
        self._files = [_Rows(*file, begin, shared if number == 0 else None) for number, file in enumerate(files)]
        for rows in self._files:
            # closed after the thread has ended its use: the number of a closed descriptor can be given to another file
            weakref.finalize(self, os.close, rows.descriptor).atexit = False
        self._halt = threading.Event()

    def start(self) -> None:
        """Start the thread, which ends with the process and is never joined."""
        threading.Thread(target=self._run, name="verify", daemon=True).start()

    def finish(self, poll: Poll) -> None:
        """Compare the remaining rows in this thread; `poll` is called after every row and may raise to stop.

        Raises:
            StorageError: a row cannot be read.
        """
        self._halt.set()
        with bar("verifying the data", sum(1 for _ in self._left())) as advance:
            for rows, row in self._left():
                with storage(rows.dataset.mapped, "read"):
                    self._compare(rows, row)
                if self.damage is not None:
                    return
                advance(1)
                poll()
        self.intact = True

    def _run(self) -> None:
        if sys.platform == "linux":  # elsewhere the priority is that of the whole process
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)
        since = time.monotonic()
        try:
            for rows, row in self._left():
                self._compare(rows, row)
                if self._halt.is_set() or self.damage is not None:
                    return
        except OSError as error:  # not fatal here: `finish` reads the same rows again
            log.warning("the data are not verified yet: %s", error)
            return
        log.info("the data are intact (verified in %.0f s)", time.monotonic() - since)
        self.intact = True

    def _left(self) -> Iterator[tuple["_Rows", int]]:
        """Yield the rows that are not known to be intact, also by other folds of the job."""
        for rows in self._files:
            for row in rows.rows:
                if rows.found[row] != rows.mark:
                    yield rows, row

    def _compare(self, rows: "_Rows", row: int) -> None:
        wrong = tuple(_wrong(rows.dataset, rows.descriptor, rows.where, row, READ))
        if wrong and rows.is_cut(row):
            raise OSError(errno.EIO, "the file is truncated")
        if wrong:
            self.damage = Damage(rows.dataset, row, wrong)
        else:
            rows.found[row] = rows.mark


class _Rows:
    """The rows of a dataset to check, in the order of checking, and the rows found intact.

    `found` has 8 bytes per row: `mark`, which identifies the open file, once the row was found intact in that file. So
    folds that read different copies do not rely on each other.
    """

    def __init__(self, dataset: Dataset, rows: np.ndarray, begin: float, shared: int | None) -> None:
        self.dataset = dataset
        arrays = {name: cast(np.memmap, getattr(dataset, name)) for name in READ}
        self.where = {name: (array.offset, array.nbytes // len(array)) for name, array in arrays.items()}
        ordered = np.unique(rows)
        self.rows: list[int] = np.roll(ordered, -int(begin * len(ordered))).tolist()
        with storage(dataset.mapped, "read"):
            self.descriptor = os.open(dataset.mapped, os.O_RDONLY)
        status = os.fstat(self.descriptor)
        identity = hashlib.sha256(f"{status.st_dev} {status.st_ino}".encode()).digest()
        self.mark = np.frombuffer(identity[:8], np.uint64)[0]
        self.found = np.zeros(dataset.num_records, np.uint64)
        if shared is not None:
            os.truncate(shared, self.found.nbytes)  # every fold sets the same size, so the order does not matter
            self.found = np.memmap(f"/proc/self/fd/{shared}", np.uint64, "r+", shape=self.found.shape)

    def is_cut(self, row: int) -> bool:
        """Return whether the file ends before a row does."""
        size = os.fstat(self.descriptor).st_size
        return any(offset + (row + 1) * row_size > size for offset, row_size in self.where.values())


def _wrong(dataset: Dataset, descriptor: int, where: RowOffsets, row: int, names: Sequence[str]) -> Iterator[str]:
    """Yield the arrays of a row whose bytes in an open file do not match their digests."""
    for name in names:
        offset, size = where[name]
        payload = os.pread(descriptor, size, offset + row * size)
        if hashlib.sha256(payload).digest() != dataset.digests[name][row].tobytes():
            yield name


def _line(dataset: Dataset, row: int, name: str) -> str:
    return f"record {dataset.record_ids[row]}: /{name} is not what was written"
