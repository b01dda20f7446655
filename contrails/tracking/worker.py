"""The process that sends to Weights & Biases for `contrails sync`: `python -m contrails.tracking.worker PID`.

Each line of input is a list of tasks; each task is answered by one line, in order. The W&B run of a fold that still
trains stays open, so that wandb need not be started for each new row. An answer reports what the server holds.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from contrails.errors import ContrailsError, TrackingError
from contrails.locks import locked
from contrails.runs.folder import Fold
from contrails.tracking.account import find_account
from contrails.tracking.contents import (
    describe_aggregation,
    describe_fold,
    digest_of,
    fill_aggregation,
    finish_fold,
    rows_of,
)
from contrails.tracking.messages import Answer, Task
from contrails.tracking.sink import GoneError
from contrails.tracking.wandb_sink import WandbSink

_HOLDS_WITHIN_S = {True: 10.0, False: 30.0}
"""Seconds to wait for the server to hold all rows: after closing the W&B run, and while wandb-core still sends."""
_LOOK_EVERY_S = 0.5
_SIDE_BY_SIDE = 8
_TURNS = ExitStack()


@dataclass
class _Opened:
    """An open W&B run; `rows` is the number of rows that it should have by now."""

    id: str
    sink: WandbSink
    rows: int
    summary: Mapping[str, float | str]


def work(tasks: list[Task], opened: dict[str, _Opened]) -> Iterator[Answer]:
    """Do tasks and yield their results; `opened` are the W&B runs that stay open, by folder.

    All tasks send in parallel before the first one waits for the server, since wandb waits for wandb-core at each row.
    """
    begun = [_caught(partial(_open, task, opened)) for task in tasks]
    with ThreadPoolExecutor(_SIDE_BY_SIDE) as pool:
        steps = [partial(_send, task, opened) for task in tasks]
        begun = list(pool.map(lambda answer, step: answer if answer.error else _caught(step), begun, steps))
    for task, answer in zip(tasks, begun, strict=True):
        settled = answer if answer.error else _caught(partial(_settle, task, opened))
        if settled.error or task.outcome != "running":
            opened.pop(task.folder, None)
        yield settled


def _caught(step: Callable[[], Answer]) -> Answer:
    try:
        return step()
    except (ContrailsError, OSError) as error:
        return Answer(error=str(error), gone=isinstance(error, GoneError))


def _open(task: Task, opened: dict[str, _Opened]) -> Answer:
    """Open the W&B run of a task, unless it is open."""
    if task.folder in opened and opened[task.folder].id != task.id:
        opened.pop(task.folder).sink.finish("failed", {})  # a new W&B run replaces it
    if task.folder not in opened:
        _wait_for_turn(task.folder)
        fold, sink = _fold_of(task), WandbSink(find_account())
        experiment = describe_fold(fold, task.id) if fold else describe_aggregation(Path(task.folder), task.id)
        opened[task.folder] = _Opened(task.id, sink, sink.open(replace(experiment, known=task.sent)), {})
    return Answer()


@cache
def _wait_for_turn(folder: str) -> None:
    """Wait until no other process sends from a folder; until this one ends, none will.

    A `contrails sync` that is killed leaves its worker, which still finishes its W&B runs.

    Raises:
        TrackingError: that command has ended before the turn of its worker came.
    """
    _TURNS.enter_context(locked(Path(folder) / ".wandb.worker.lock"))
    if os.getppid() != int(sys.argv[-1]):
        raise TrackingError("contrails sync has ended, and another one may be at work")


def _fold_of(task: Task) -> Fold | None:
    folder = Path(task.folder)
    return Fold(folder) if folder.parent.name == "folds" else None


def _send(task: Task, opened: dict[str, _Opened]) -> Answer:
    """Send what the W&B run lacks."""
    folder, fold, run = Path(task.folder), _fold_of(task), opened[task.folder]
    if fold is None:
        number, run.summary = fill_aggregation(run.sink, folder, max(0, run.rows - task.rows))
        run.rows = task.rows + number
        return Answer()
    rows = rows_of(fold, task.rows)[: task.rows]
    if digest_of(rows) != task.digest:
        raise TrackingError(f"the rows in {folder} changed while they were sent")
    _require_no_more(run.rows, len(rows))
    run.sink.rows(rows[run.rows :])
    run.rows = len(rows)
    run.summary = finish_fold(run.sink, fold) if task.outcome == "finished" else {}
    return Answer()


def _settle(task: Task, opened: dict[str, _Opened]) -> Answer:
    """Wait until W&B holds the rows; finish the W&B run unless it stays open."""
    run = opened[task.folder]
    closed = task.outcome != "running"
    if closed:
        run.sink.finish(task.outcome, run.summary)
    end = time.monotonic() + _HOLDS_WITHIN_S[closed]
    while (held := run.sink.held()) < run.rows:
        if time.monotonic() > end:
            why = run.sink.refusal or "it has not answered"
            raise TrackingError(f"of {run.rows} rows W&B holds {held}; its answer to the others: {why}")
        time.sleep(_LOOK_EVERY_S)
    _require_no_more(held, run.rows)
    return Answer(held, run.sink.offline_folder)


def _require_no_more(held: int, rows: int) -> None:
    if held > rows:
        raise GoneError(f"W&B holds {held} rows, expected {rows}: another program has sent to this run too")


def main() -> None:
    """Answer tasks until the input ends."""
    # keep what wandb prints out of the answers
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    opened: dict[str, _Opened] = {}
    with suppress(BrokenPipeError):  # `contrails sync` was killed before it read the answer
        for line in sys.stdin:
            for answer in work([Task.from_json(each) for each in json.loads(line)], opened):
                answers.write(f"{answer.to_json()}\n")
                answers.flush()
    for run in opened.values():  # `contrails sync` was killed
        with suppress(ContrailsError, OSError):
            run.sink.finish("preempted", {})
    os._exit(0)  # skips wandb's exit hook, which marks failed runs as finished and can wait for ever


if __name__ == "__main__":
    main()
