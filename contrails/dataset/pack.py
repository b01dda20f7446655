"""Raw records to a dataset file: several processes write disjoint rows of arrays that were laid out beforehand.

The file grows under `.<name>.part` with a journal beside it; a row counts as written once its data is flushed and
its digest stands in the journal. Killed at any moment and started again, packing goes on with the rows that are
missing, and the file ends in the same bytes as one made without interruption. It gets its name when it is complete.
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
    """What goes into a file: equal plans make equal files.

    `read` makes a record's arrays, and says how many annotators it has; other processes call it, so it is a function of
    a module. The `warnings` are told when packing begins, and the `notes` say what
    was found out for it.
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
                f"expected at most as many shards as there are records, found {count} shards of {len(self.records)} "
                f"records of '{self.header.split}' in {self.root}; make {len(self.records)} shards or fewer"
            )
        first, last = shard_rows(len(self.records), index, count)
        return replace(self, header=self.header.slice(index, count), records=self.records[first:last])


def labelled_tests(split: str, num_labelled: int, num_all: int, what: str = "records") -> tuple[str, ...]:
    """Return what to tell where records, or scenes, that are to be predicted have labels."""
    if split != "test" or not num_labelled:
        return ()
    found = f"{num_labelled} of {num_all} {what} of the split test have masks, and are packed with these labels"
    return (f"{found}: make sure that nothing is trained on them",)


def pack(plan: Plan[Any], out: Path, num_workers: int) -> bool:
    """Write the dataset file of a plan; return False if it was there already.

    Raises:
        DataError: a record is not as expected, or another file has this name.
        StorageError: the folder cannot be written or is full; what is packed stays for the next try.
    """
    with storage(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        exists = out.exists()  # fails in a folder that may not be entered
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
    """What the journal says of a finished row; digests are hexadecimal."""

    row: int
    annotators: int
    digests: dict[str, str]


def _require_same(plan: Plan[Any], out: Path) -> None:
    existing = open_dataset(out)
    different = header_of(existing).differences(plan.header)
    if different:
        raise DataError(
            f"{out} exists and holds something else (other {', '.join(different)}; it has {existing.num_records} "
            f"records of '{existing.split}', bands {names_in(existing.band_names)}, frames {list(existing.frames)}); "
            "a dataset file is never rewritten: choose another name, or remove it"
        )


def _resume(plan: Plan[Any], part: Path, journal: Path) -> dict[int, _Row]:
    """Return the rows that an earlier try of the same plan finished; begin anew where there is none."""
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
    # forkserver: a worker starts from a clean process, whatever threads the caller has
    with (
        bar(f"packing {plan.header.split}", len(plan.records), done=len(written)) as advance,
        ProcessPoolExecutor(
            num_workers, get_context("forkserver"), _start_worker, (plan, part, row_offsets(part))
        ) as pool,
    ):
        try:
            # only a few tasks are under way, so that an error or Ctrl-C ends the work soon
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
                "stopped: %d of %d records are packed; the same command goes on from there",
                *(len(written), len(plan.records)),
            )
            raise
        except BrokenProcessPool as error:
            raise StorageError(
                f"a process that packed {part.name} was killed, probably for memory; run the same command again"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _submit(pool: ProcessPoolExecutor, rows: list[int]) -> "Future[list[_Row]]":
    """Give rows to a worker, which may be started for it, and has not imported yet what ignores Ctrl-C."""
    with held_back([signal.SIGINT]):
        return pool.submit(_pack_rows, rows)


_worker: tuple[Plan[Any], Path, RowOffsets]


def _start_worker(plan: Plan[Any], part: Path, where: RowOffsets) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches workers too: they finish their rows
    _worker = (plan, part, where)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()


def _end_with_parent() -> None:
    """End this worker when the process that started it is gone, however that ended.

    Otherwise it waits for tasks for ever, and those that it still has may go into the file of the next try.
    """
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _pack_rows(rows: list[int]) -> list[_Row]:
    """Read, pack and write rows in a worker process; return what the journal needs."""
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
    """Write what is known only when all rows are: annotators and digests."""
    rows = [written[row] for row in range(len(written))]
    digests = {name: b"".join(bytes.fromhex(row.digests[name]) for row in rows) for name in rows[0].digests}
    write_columns(part, bytes(row.annotators for row in rows), digests)
