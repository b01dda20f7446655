"""The chain: links, each a PBS job, that together form one job with the id of the first link.

The walltime ends a link, but not the job: when a link starts, it submits its successor, held until the link ends with
any code but 0 (`afternotok`, which also fires after kill -9). Events are appended to `<first id>_chain.jsonl` beside
submitit's files. The rows and their fields, by `event`:
    start       a link began; a second row with the same job_id means that PBS ran it again
    successor   the next link was submitted: link, job_id, after
    refused     PBS refused the next link: said
    warning     the walltime is near, the task was told to save
    term        TERM came; early: before the warning, so a user or the scheduler ended the job
    preempted   PBS said that the scheduler ended the job, to free the node for others
    ended       the task ended without a result: code
    replaced    this link submitted another in its place, with more memory or a longer wait for other jobs
    judged      the next link determined why its predecessor ended: cause, whether it lacked memory, and its node
    progress    the task reported progress; the counts for the budgets restart
    over        the job has ended: state, reason, has_result, is_orphan (a job that had to succeed first has not)
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
"""Environment variables of a task: the job's id in submitit, and the array's id.

The job's id is that of the first link, or `<array id>_<index>` for an element of an array. The array's id is set for
elements only; submitit makes the element's id and the names of its files from it.
"""

RESTARTS = "SUBMITIT_PBS_RESTARTS"
"""Environment variable of a task: how often its job was started before, by earlier links and by reruns of PBS."""

Rows = Sequence[Mapping[str, Any]]

_SURE = {TIMEOUT, OUT_OF_MEMORY, NODE_FAIL, PREEMPTED}
"""Causes that only PBS can know; they take precedence over what the link itself recorded."""


class Chain:
    """The events of one job over all its links.

    Args:
        folder: submitit's folder of the job.
        job_id: the job's id in submitit, which is that of the first link.
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
        """Create the tombstone: no link starts from now on."""
        create_exclusive(self._tombstone, "")

    def rows(self) -> list[dict[str, Any]]:
        """Return all events so far."""
        return read_json_lines(self.path)

    def append(self, event: str, **details: Any) -> None:
        """Append an event, and flush it to the disk."""
        row = {"event": event, "time": time.time(), "host": socket.gethostname(), **details}
        append_json_line(self.path, row, durable=True)


def note_progress(environment: Mapping[str, str] = os.environ) -> None:
    """Record, from a task of this plugin, that it has made progress, so that the counts for the budgets restart."""
    Chain(Path(environment["SUBMITIT_FOLDER"]), environment[JOB_ID]).append("progress")


def over(rows: Rows) -> Mapping[str, Any] | None:
    """Return the row that ends the job; None if there is none yet."""
    return next((row for row in rows if row["event"] == "over"), None)


def links_of(rows: Rows, first_id: str) -> list[str]:
    """Return the ids of all links so far, in the order of submission."""
    later = (str(row["job_id"]) for row in rows if row["event"] in ("successor", "start"))
    return list(dict.fromkeys([first_id, *later]))


def current_id(rows: Rows, first_id: str) -> str:
    """Return the id of the newest link that has started; the first link's id if none has."""
    starts = [row for row in rows if row["event"] == "start"]
    return str(max(starts, key=lambda row: row["link"])["job_id"]) if starts else first_id


def successor_of(rows: Rows, job_id: str) -> str | None:
    """Return the id of the link submitted after `job_id`; None if there is none."""
    return next((row["job_id"] for row in rows if row["event"] == "successor" and row["after"] == job_id), None)


def cause_of_start(rows: Rows, job_id: str) -> str | None:
    """Return the recorded reason why the task before the link `job_id` ended; None if that task handed over."""
    cause = next((row["cause"] for row in rows if row["event"] == "judged" and row["job_id"] == job_id), None)
    prior = next((row["after"] for row in rows if row["event"] == "successor" and row["job_id"] == job_id), None)
    return cause_of_start(rows, str(prior)) if made_way(rows, str(prior)) else cause


def refusal(rows: Rows) -> str | None:
    """Return PBS's last message that refused a next link; None if there is none."""
    return next((str(row["said"]) for row in reversed(rows) if row["event"] == "refused"), None)


def made_way(rows: Rows, job_id: str) -> bool:
    """Return whether a link has submitted another one in its place; such a link exits with code 0."""
    return any(row["event"] == "replaced" and row["job_id"] == job_id for row in rows)


def is_saving(rows: Rows) -> bool:
    """Return whether the link that started last got TERM and has not recorded its end yet."""
    last = next((row["event"] for row in reversed(rows) if row["event"] in ("start", "term", "ended", "over")), None)
    return last == "term"


def memory_failures(rows: Rows) -> int:
    """Return how many links have ended for lack of memory since the last progress."""
    return _in_a_row(rows, lambda row: bool(row.get("lacked_memory")))


def failed_hosts(rows: Rows) -> list[str]:
    """Return the hosts that caused the end of links since the last progress, newest first."""
    return [str(row["node"]) for row in _since_progress(rows) if row.get("cause") == NODE_FAIL and row.get("node")]


def host_of(rows: Rows, job_id: str) -> str | None:
    """Return the host where a link started last; None if it has not started."""
    return next((row["host"] for row in reversed(rows) if row["event"] == "start" and row["job_id"] == job_id), None)


@dataclass(frozen=True)
class Judgement:
    """The decision of a link at its start: why its predecessor ended and, if the job ends now, its final state."""

    cause: str | None
    final: str | None = None
    reason: str | None = None
    lacked_memory: bool = False


def judge(rows: Rows, prior_id: str, verdict: Verdict | None, budgets: Mapping[str, int]) -> Judgement:
    """Decide whether the job continues after the link `prior_id` has ended.

    Args:
        rows: the chain so far.
        prior_id: the link before this one.
        verdict: what PBS says about it; None if PBS does not answer, or has no history.
        budgets: by cause, the number of failures that are allowed without progress in between.
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
        reason = f"{cause} {failures} times without progress in between; the budget is {budgets[cause]} (pbs_budgets)"
        return Judgement(cause, cause, reason)
    had_enough = verdict is not None and verdict.state == KILLED and verdict.memory_was_far
    return Judgement(cause, lacked_memory=cause in (OUT_OF_MEMORY, KILLED) and not had_enough)


def end_without_next(rows: Rows, job_id: str) -> tuple[str, str] | None:
    """Return final state and reason of a job whose link `job_id` has ended without a next link.

    None if there is a next link, or if the chain does not tell why there is none.
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
    """Return the rows of a link since it last started; PBS may have run it several times."""
    own = [row for row in rows if row.get("job_id") == job_id and row["event"] != "successor"]
    starts = [number for number, row in enumerate(own) if row["event"] == "start"]
    return own[starts[-1] :] if starts else own


def _in_a_row(rows: Rows, counts: Callable[[Mapping[str, Any]], bool]) -> int:
    """Return the number of judgements since the last progress for which `counts` holds."""
    return sum(counts(row) for row in _since_progress(rows))


def _since_progress(rows: Rows) -> Iterator[Mapping[str, Any]]:
    """Yield the judgements since the last progress, newest first."""
    for row in reversed(rows):
        if row["event"] == "progress" or (row["event"] == "ended" and row["code"] in HANDED_OVER):
            return
        if row["event"] == "judged":
            yield row
