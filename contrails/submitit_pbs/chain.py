"""The chain: links, each a PBS job, that together are one job under the id of the first.

A walltime ends a link, never the work: at its start a link submits its successor, held until the link ends with
anything but 0 (`afternotok`, which fires after kill -9 too). What happened is appended to `<first id>_chain.jsonl`
beside submitit's files, always before the link that saw it ends. Rows, by `event`:

    start       a link began; a second one of the same job_id means that PBS ran it again
    successor   the next link was submitted: link, job_id, after
    refused     PBS did not take it: said
    warning     the walltime is near, the task was told to save
    term        TERM came; early: before the warning, so somebody or the scheduler ended the job
    preempted   PBS said that it was the scheduler, to make room
    ended       the task ended without a result: code
    replaced    this link made way for one with more memory, or that waits longer for other jobs
    judged      the next link looked at why its predecessor ended: cause, whether it lacked memory, and its node
    progress    the task said that it got further; budgets start anew
    over        the last word: state, reason, has_result, is_orphan (another job was to succeed first, and has not)
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contrails.files import append_json_line, create_exclusive, read_json_lines
from contrails.submitit_pbs.states import (
    CANCELLED,
    FAILED,
    HANDED_OVER,
    KILLED,
    LOST,
    NODE_FAIL,
    OUT_OF_MEMORY,
    PREEMPTED,
    REFUSED,
    TASK_EXITS,
    TIMEOUT,
    Verdict,
)

JOB_ID, ARRAY_ID = "SUBMITIT_PBS_JOB_ID", "SUBMITIT_PBS_ARRAY_ID"
"""Environment of a task: the first link's id, or that of an array with the index of its element after `_`.

The array's id is there for an element alone; submitit makes the element's id, and the names of its files, of it.
"""

RESTARTS = "SUBMITIT_PBS_RESTARTS"
"""Environment of a task: how often the job was started before, by the next links and by PBS's own reruns."""

Rows = Sequence[Mapping[str, Any]]

_SURE = {TIMEOUT, OUT_OF_MEMORY, NODE_FAIL, PREEMPTED}
"""What PBS alone can know: it goes before what the link itself wrote."""


class Chain:
    """The story of one job over its links.

    Args:
        folder: submitit's folder of the job.
        job_id: the id that submitit knows, the first link's.
    """

    def __init__(self, folder: Path, job_id: str) -> None:
        self.job_id = job_id
        self.path = folder / f"{job_id}_chain.jsonl"
        self._tombstone = folder / f"{job_id}_cancelled"

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled through its Job object."""
        return self._tombstone.exists()

    def cancel(self) -> None:
        """Leave the tombstone: no link starts from now on."""
        create_exclusive(self._tombstone, "")

    def rows(self) -> list[dict[str, Any]]:
        """Return what happened so far."""
        return read_json_lines(self.path)

    def append(self, event: str, **details: Any) -> None:
        """Add a row, on the disk before this returns."""
        row = {"event": event, "time": time.time(), "host": socket.gethostname(), **details}
        append_json_line(self.path, row, durable=True)


def note_progress(environment: Mapping[str, str] = os.environ) -> None:
    """Say, from a task of this plugin, that it got further since the last failure: the budgets start anew."""
    Chain(Path(environment["SUBMITIT_FOLDER"]), environment[JOB_ID]).append("progress")


def over(rows: Rows) -> Mapping[str, Any] | None:
    """Return the row with the last word, if it was said."""
    return next((row for row in rows if row["event"] == "over"), None)


def links_of(rows: Rows, first_id: str) -> list[str]:
    """Return the ids of all links so far, in the order of their submission."""
    later = (str(row["job_id"]) for row in rows if row["event"] in ("successor", "start"))
    return list(dict.fromkeys([first_id, *later]))


def current_id(rows: Rows, first_id: str) -> str:
    """Return the id of the newest link that has started; the first one's before any has."""
    starts = [row for row in rows if row["event"] == "start"]
    return str(max(starts, key=lambda row: row["link"])["job_id"]) if starts else first_id


def successor_of(rows: Rows, job_id: str) -> str | None:
    """Return the id of the link submitted after `job_id`, if there is one."""
    return next((row["job_id"] for row in rows if row["event"] == "successor" and row["after"] == job_id), None)


def cause_of_start(rows: Rows, job_id: str) -> str | None:
    """Return why the last task ended before the link `job_id` started, as it was judged; None if it handed over."""
    cause = next((row["cause"] for row in rows if row["event"] == "judged" and row["job_id"] == job_id), None)
    prior = next((row["after"] for row in rows if row["event"] == "successor" and row["job_id"] == job_id), None)
    return cause_of_start(rows, str(prior)) if made_way(rows, str(prior)) else cause


def refusal(rows: Rows) -> str | None:
    """Return what PBS said last when it did not take a next link, if it ever did not."""
    return next((str(row["said"]) for row in reversed(rows) if row["event"] == "refused"), None)


def made_way(rows: Rows, job_id: str) -> bool:
    """Return whether a link has submitted another one in its place: it leaves like one that is done."""
    return any(row["event"] == "replaced" and row["job_id"] == job_id for row in rows)


def is_saving(rows: Rows) -> bool:
    """Return whether the link that started last got TERM and has not said yet how it ended."""
    last = next((row["event"] for row in reversed(rows) if row["event"] in ("start", "term", "ended", "over")), None)
    return last == "term"


def memory_failures(rows: Rows) -> int:
    """Return how many links in a row ended for lack of memory, without progress between."""
    return _in_a_row(rows, lambda row: bool(row.get("lacked_memory")))


def failed_hosts(rows: Rows) -> list[str]:
    """Return the hosts whose fault it was that links in a row ended, without progress between."""
    return [str(row["node"]) for row in _since_progress(rows) if row.get("cause") == NODE_FAIL and row.get("node")]


def host_of(rows: Rows, job_id: str) -> str | None:
    """Return where a link started last; None if it has not."""
    return next((row["host"] for row in reversed(rows) if row["event"] == "start" and row["job_id"] == job_id), None)


@dataclass(frozen=True)
class Judgement:
    """What a link decides about its start: why its predecessor ended, and, unless it goes on, how the job ends."""

    cause: str | None
    final: str | None = None
    reason: str | None = None
    lacked_memory: bool = False


def judge(rows: Rows, prior_id: str, verdict: Verdict | None, budgets: Mapping[str, int]) -> Judgement:
    """Decide whether the work goes on after the link `prior_id` has ended.

    Args:
        rows: the chain so far.
        prior_id: the link before this one.
        verdict: what PBS says about it; None where it does not answer, or has no history.
        budgets: failures in a row allowed, by cause.
    """
    cause = _cause(rows, prior_id, verdict)
    if cause is None:
        return Judgement(None)
    if cause == CANCELLED:
        return Judgement(cause, CANCELLED, f"job {prior_id} was deleted")
    if cause not in budgets:
        return Judgement(cause) if cause == PREEMPTED else Judgement(cause, FAILED, f"job {prior_id}: {cause}")
    failures = 1 + _in_a_row(rows, lambda row: bool(row["cause"] == cause))
    if failures > budgets[cause]:
        reason = f"{cause} {failures} times in a row without progress; the budget is {budgets[cause]} (pbs_budgets)"
        return Judgement(cause, cause, reason)
    had_enough = verdict is not None and verdict.state == KILLED and verdict.memory_was_far
    return Judgement(cause, lacked_memory=cause in (OUT_OF_MEMORY, KILLED) and not had_enough)


def end_without_next(rows: Rows, job_id: str) -> tuple[str, str] | None:
    """Return state and reason of a job whose last link, `job_id`, has ended: nobody after it says the last word.

    None where another link follows, or the chain does not know.
    """
    if successor_of(rows, job_id) is not None:
        return None
    if _cause(rows, job_id, None) == CANCELLED:
        return CANCELLED, f"job {job_id} was deleted"
    said = refusal(rows)
    return None if said is None else (REFUSED, f"the next link could not be submitted: {said}")


def _cause(rows: Rows, prior_id: str, verdict: Verdict | None) -> str | None:
    """Return why a link ended; None if it handed over."""
    events = _last_run(rows, prior_id)
    if any(row["event"] == "replaced" for row in events):
        return None
    if verdict is not None and verdict.state in _SURE:
        handed_over = any(row["event"] == "ended" and row["code"] in HANDED_OVER for row in events)
        return None if verdict.state == TIMEOUT and handed_over else verdict.state
    if any(row["event"] == "preempted" for row in events):
        return PREEMPTED
    if any(row["event"] == "term" and row["early"] for row in events):
        return CANCELLED
    if verdict is not None and verdict.state == CANCELLED:
        return CANCELLED
    for row in events:
        if row["event"] == "ended":
            return None if row["code"] in HANDED_OVER else TASK_EXITS.get(row["code"], FAILED)
    return LOST if verdict is None or not verdict.over else verdict.state


def _last_run(rows: Rows, job_id: str) -> list[Mapping[str, Any]]:
    """Return what a link wrote since it last started; PBS may have run it several times."""
    own = [row for row in rows if row.get("job_id") == job_id and row["event"] != "successor"]
    starts = [number for number, row in enumerate(own) if row["event"] == "start"]
    return own[starts[-1] :] if starts else own


def _in_a_row(rows: Rows, counts: Callable[[Mapping[str, Any]], bool]) -> int:
    """Return how many judgements since the last progress count."""
    return sum(counts(row) for row in _since_progress(rows))


def _since_progress(rows: Rows) -> Iterator[Mapping[str, Any]]:
    """Yield the judgements since the last progress, the newest first."""
    for row in reversed(rows):
        if row["event"] == "progress" or (row["event"] == "ended" and row["code"] in HANDED_OVER):
            return
        if row["event"] == "judged":
            yield row
