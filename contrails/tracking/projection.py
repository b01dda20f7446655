"""Sending folds and aggregations to Weights & Biases: one W&B run for each, over all interruptions.

The run folder decides what is sent (see `contrails.tracking.plan`). The worker process is started when there is
something to send.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from contrails.errors import ContrailsError, TrackingError
from contrails.locks import sole_writer
from contrails.runs.folder import Fold, Run
from contrails.tracking.account import find_account
from contrails.tracking.messages import Answer, Task
from contrails.tracking.plan import Item, Plan, items_of, outcome_of, plan, signs_of
from contrails.tracking.process import Worker

_DEADLINE_S = 300.0
_LEAVE_S = 20.0
_INTERVAL_S = 10.0
_LONGEST_PAUSE_S = 600.0


@dataclass(frozen=True)
class Sent:
    """The result for an item: `rows` is 0 if nothing was new, `said` is a message for the user."""

    item: Item
    rows: int = 0
    said: str | None = None
    error: str | None = None


class Projection:
    """Sends items of a run; a context manager, until whose end W&B runs of active folds stay open with `live`."""

    def __init__(self, run: Run, *, live: bool = False) -> None:
        self._run, self._live, self._account = run, live, find_account()
        self._worker: Worker | None = None
        self._locks, self._locked = ExitStack(), set[Path]()
        self._open: dict[Path, tuple[Task, list[Any]]] = {}
        self._signs: dict[Path, list[Any]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._locks:
            left = [replace(task, outcome="preempted") for task, _ in self._open.values()]
            with suppress(TrackingError):
                list(self._answers(left, _LEAVE_S))
            self._end()

    def send(self, items: Sequence[Item], *, rebuild: bool = False) -> Iterator[Sent]:
        """Send what is new for each item, in parallel; yield the result of each."""
        plans = []
        for item in items:
            if self._is_quiet(item):
                yield Sent(item)
                continue
            try:
                self._lock(item)
                opened = self._open.get(item.path, (None, None))[1]
                found = plan(item, self._account.destination, opened, live=self._live, rebuild=rebuild)
                if found is not None:
                    found.begin()
                    plans.append(found)
            except ContrailsError as error:
                yield Sent(item, error=str(error))
                continue
            if found is None:
                yield Sent(item)
        settled = 0
        try:
            for each, answer in zip(plans, self._answers([each.task for each in plans], _DEADLINE_S), strict=True):
                settled += 1
                yield self._settled(each, answer)
        except TrackingError as error:
            yield from (Sent(left.item, error=_advised(str(error))) for left in plans[settled:])

    def _is_quiet(self, item: Item) -> bool:
        """Return whether the files of an open fold are unchanged, to avoid reading many rows."""
        signs = signs_of(item.fold) if self._live and item.fold else []
        same, self._signs[item.path] = signs == self._signs.get(item.path), signs
        return same and item.path in self._open and outcome_of(item, live=True) == "running"

    def _settled(self, of: Plan, answer: Answer) -> Sent:
        """Record what W&B holds now, or explain why it does not."""
        self._open.pop(of.item.path, None)
        if answer.error is not None:
            again = f"W&B: {answer.error}; make a new W&B run of it with `{of.item.rebuild}`"
            said = again if answer.gone else _advised(answer.error)
            return Sent(of.item, error=said)
        if of.task.outcome == "running":
            self._open[of.item.path] = of.task, of.stamp
        else:
            _remove_others(of.item.path / "wandb", answer.offline)
        of.finish(answer)
        return Sent(of.item, answer.rows, of.said)

    def _lock(self, item: Item) -> None:
        if item.path not in self._locked:
            busy = f"another contrails sync works on {item.path}; wait for it, or stop it, then run it again"
            self._locks.enter_context(sole_writer(item.path / ".wandb.lock", busy))
            self._locked.add(item.path)

    def _answers(self, tasks: list[Task], deadline_s: float) -> Iterator[Answer]:
        """Yield the results of tasks; a worker that failed at one is ended, with all W&B runs that it has open."""
        if not tasks:
            return
        if self._worker is None:
            self._worker = Worker(self._run, self._account)
        failed = True
        try:
            answers = list[Answer]()
            for answer in self._worker.answers(tasks, deadline_s):
                answers.append(answer)
                yield answer
            failed = any(answer.error for answer in answers)
        finally:
            if failed:
                self._end()

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.end()
            self._worker = None
        self._open.clear()


def sync_fold(fold: Fold, *, rebuild: bool = False) -> int:
    """Send what is new for a fold; return its number of rows, 0 if nothing was new.

    Online, new rows are added to those that W&B holds. Offline, all rows are written to a new folder, which replaces
    the previous one, so that `wandb sync` sends them completely.

    Raises:
        TrackingError: W&B refuses, or does not answer in time.
    """
    with Projection(fold.run) as projection:
        (sent,) = projection.send([Item(fold.run, fold.path, fold)], rebuild=rebuild)
    if sent.error is not None:
        raise TrackingError(sent.error)
    return sent.rows


def follow(
    run: Run, folds: list[Fold], ended: Callable[[Fold], bool], interval_s: float = _INTERVAL_S
) -> Iterator[Sent]:
    """Send what is new for folds every `interval_s` until all have ended; yield what was sent, and each failure.

    A failure is retried after pauses of increasing length.
    """
    failures, not_before = dict[Path, int](), dict[Path, float]()
    with Projection(run, live=True) as projection:
        while True:
            over = all(ended(fold) for fold in folds)
            now = time.monotonic()
            due = [
                item for item in items_of(run, folds, aggregations=False) if over or not_before.get(item.path, 0) <= now
            ]
            for sent in projection.send(due):
                count = failures.get(sent.item.path, 0) + 1 if sent.error else 0
                failures[sent.item.path] = count
                pause = min(_LONGEST_PAUSE_S, interval_s * 2**count) if count else 0
                not_before[sent.item.path] = now + pause
                yield sent
            if over:
                return
            time.sleep(interval_s)


def _advised(problem: str) -> str:
    return (
        f"W&B: {problem}; nothing is lost: fix the cause (key, network), or set WANDB_MODE=offline for offline files, "
        "then run the same command again"
    )


def _remove_others(files: Path, kept: str | None) -> None:
    """Remove wandb's files of a run that a server holds, and offline folders that a newer one replaces."""
    if kept is None:
        shutil.rmtree(files, ignore_errors=True)
    for path in files.glob("offline-run-*"):
        if path.name != kept:
            shutil.rmtree(path, ignore_errors=True)
