"""Packing of raw records into a dataset file, by several processes that write disjoint rows of allocated arrays.

The file is written as `.<name>.part`, with a journal beside it. A row is finished when its data are flushed and its
digest is in the journal. Packing that was killed continues with the missing rows, and the result is byte-identical to
that of an uninterrupted call. The file gets its name when it is complete.
"""

import hashlib
import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from contrails.dataset.layout import (
    Header,
    RowOffsets,
    create,
    header_of,
    opened,
    row_offsets,
    shard_rows,
    write_columns,
    write_row,
)
from contrails.dataset.store import open_dataset
from contrails.errors import DataError, StorageError, names_in
from contrails.files import append_json_line, atomic_path, fsync, read_json_lines, storage, to_json
from contrails.locks import sole_writer
from contrails.processes import held_back
from contrails.progress import bar

_ROWS_A_TASK = 32

log = logging.getLogger(__name__)


R = TypeVar("R")

Arrays = dict[str, np.ndarray]
"""A record's row of each array: bands (T, C, H, W), votes (H, W), and marks (H, W) where the header has them."""


@dataclass(frozen=True)
class Plan(Generic[R]):
    """The records and the header of a file; equal plans make byte-identical files.

    `read` returns the arrays of a record and its number of annotators. Worker processes call it, so it must be a
    function of a module, which can be pickled. `warnings` are logged when packing begins; `notes` describe what was
    found in the raw data.
    """

    root: str
    header: Header
    records: tuple[R, ...]
    read: Callable[[Header, R], tuple[Arrays, int]]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def shard(self, index: int, count: int) -> "Plan[R]":
        """Return the plan of one of `count` shards, from 1 on.

        Raises:
            DataError: there are more shards than records.
        """
        if count > len(self.records):
            raise DataError(
                f"expected at most one shard per record, found {count} shards of {len(self.records)} records of "
                f"'{self.header.split}' in {self.root}; make {len(self.records)} shards or fewer"
            )
        first, last = shard_rows(len(self.records), index, count)
        return replace(self, header=self.header.slice(index, count), records=self.records[first:last])


def labelled_tests(split: str, num_labelled: int, num_all: int, what: str = "records") -> tuple[str, ...]:
    """Return a warning if records or scenes of the split test have labels."""
    if split != "test" or not num_labelled:
        return ()
    found = f"{num_labelled} of {num_all} {what} of the split test have masks, and are packed with these labels"
    return (f"{found}: make sure that no training uses them",)


def pack(plan: Plan[Any], out: Path, num_workers: int) -> bool:
    """Write the dataset file of a plan; return False if it exists already.

    Raises:
        DataError: a record is not as expected, or `out` exists with other content.
        StorageError: the folder cannot be written or is full; finished rows are kept for the next call.
    """
    with storage(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        exists = out.exists()  # raises OSError if the folder may not be searched
    if exists:
        _require_same(plan, out)
        return False
    part, journal = out.with_name(f".{out.name}.part"), out.with_name(f".{out.name}.journal")
    with sole_writer(journal, f"another contrails prepare is writing {out.name}; wait for it"):
        written = _resume(plan, part, journal)
        for warning in () if written else plan.warnings:
            log.warning("%s", warning)
        _write_rows(plan, part, journal, written, num_workers)
        _write_small(part, written)
        with storage(out):
            part.replace(out)
            journal.unlink()
            fsync(out.parent)
    return True


@dataclass(frozen=True)
class _Row:
    """The journal's entry of a finished row; digests are hexadecimal."""

    row: int
    annotators: int
    digests: dict[str, str]


def _require_same(plan: Plan[Any], out: Path) -> None:
    existing = open_dataset(out)
    different = header_of(existing).differences(plan.header)
    if different:
        raise DataError(
            f"{out} exists and differs in {', '.join(different)} (found {existing.num_records} records of "
            f"'{existing.split}', bands {names_in(existing.band_names)}, frames {list(existing.frames)}); an existing "
            "dataset file is never overwritten: choose another name, or remove it"
        )


def _resume(plan: Plan[Any], part: Path, journal: Path) -> dict[int, _Row]:
    """Return the rows that an earlier call with the same plan finished; without one, start an empty file."""
    identity = hashlib.sha256(to_json([plan.root, plan.header.digest]).encode()).hexdigest()
    entries = read_json_lines(journal)
    if part.exists() and entries and entries[0].get("plan") == identity:
        return {entry["row"]: _Row(**entry) for entry in entries[1:]}
    with storage(part):
        os.truncate(journal, 0)
        with atomic_path(part) as temporary:
            create(plan.header, temporary)
    append_json_line(journal, {"plan": identity}, durable=True)
    return {}


def _write_rows(plan: Plan[Any], part: Path, journal: Path, written: dict[int, _Row], num_workers: int) -> None:
    missing = [row for row in range(len(plan.records)) if row not in written]
    tasks = (missing[start : start + _ROWS_A_TASK] for start in range(0, len(missing), _ROWS_A_TASK))
    # forkserver: workers start from a clean process; forking a caller with threads could deadlock
    with (
        bar(f"packing {plan.header.split}", len(plan.records), done=len(written)) as advance,
        ProcessPoolExecutor(
            num_workers, get_context("forkserver"), _start_worker, (plan, part, row_offsets(part))
        ) as pool,
    ):
        try:
            # only a few tasks are submitted at a time, so that an error or Ctrl-C ends the work soon
            running = {_submit(pool, rows) for rows in itertools.islice(tasks, 2 * num_workers)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for rows in (future.result() for future in done):
                    for row in rows:
                        append_json_line(journal, asdict(row), durable=row is rows[-1])
                        written[row.row] = row
                    advance(len(rows))
                    running |= {_submit(pool, more) for more in itertools.islice(tasks, 1)}
        except KeyboardInterrupt:
            log.warning(
                "stopped: %d of %d records are packed; the same command continues from there",
                *(len(written), len(plan.records)),
            )
            raise
        except BrokenProcessPool as error:
            raise StorageError(
                f"a process that packed {part.name} was killed, probably for lack of memory; run the same command "
                "again, with fewer --workers"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, rows: list[int]) -> "Future[list[_Row]]":
    """Submit rows with SIGINT blocked: a worker that starts now ignores Ctrl-C only after its imports."""
    with held_back([signal.SIGINT]):
        return pool.submit(_pack_rows, rows)


_worker: tuple[Plan[Any], Path, RowOffsets]


def _start_worker(plan: Plan[Any], part: Path, where: RowOffsets) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to workers too; they finish their rows
    _worker = (plan, part, where)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when its parent process has ended in any way.

    Otherwise it would wait for tasks for ever, and could still write rows into the file of the next call.
    """
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _pack_rows(rows: list[int]) -> list[_Row]:
    """Read, pack and write rows in a worker process; return their journal entries."""
    plan, part, where = _worker
    with opened(part) as descriptor:
        return [_pack_row(plan, descriptor, where, row) for row in rows]


def _pack_row(plan: Plan[Any], descriptor: int, where: RowOffsets, row: int) -> _Row:
    arrays, annotators = plan.read(plan.header, plan.records[row])
    digests = {}
    for name, array in arrays.items():
        assert array.flags.c_contiguous
        payload = array.data.cast("B")
        write_row(descriptor, where[name], row, payload)
        digests[name] = hashlib.sha256(payload).hexdigest()
    return _Row(row, annotators, digests)


def _write_small(part: Path, written: dict[int, _Row]) -> None:
    """Write the columns that are known only after all rows: annotators and digests."""
    rows = [written[row] for row in range(len(written))]
    digests = {name: bytes.fromhex("".join(row.digests[name] for row in rows)) for name in rows[0].digests}
    write_columns(part, bytes(row.annotators for row in rows), digests)
