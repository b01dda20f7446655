"""The journal of a run: each job is recorded before the scheduler is asked, and again after it has answered.

An intent without an answer is a submission that was killed, or whose answer was lost; the job may exist.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from contrails.cluster.outcomes import Cause
from contrails.files import append_json_line, read_json_lines, typed
from contrails.processes import Process, process_in
from contrails.runs.folder import Run, job_log
from contrails.train.attempt import is_made_by


@dataclass(frozen=True)
class Fruitless:
    """Why a start of a job ended without an attempt, and the seconds it had lasted, None if unknown."""

    cause: Cause
    lasted_s: float | None = None


@dataclass(frozen=True)
class Submission:
    """A job as recorded in the journal.

    `time` is when it was requested, in seconds since the epoch. `job_id` is None until the scheduler has answered.
    `void` is True if the scheduler knows no such job or has refused it. `refusal` is the scheduler's message if other
    jobs of the run shall submit the refused job again. `process` is the job's process if it runs on this machine.
    `is_leaving` is True if the job was about to end when the scheduler refused a job that it submitted.
    """

    name: str
    folds: tuple[str, ...]
    time: float = 0.0
    pickle: str | None = None
    job_id: str | None = None
    void: bool = False
    refusal: str | None = None
    memory_gb: float | None = None
    exclude: tuple[str, ...] = ()
    after: tuple[Run, ...] = ()
    """Runs whose jobs it waits for."""
    process: Process | None = None
    fruitless: Mapping[int, Fruitless] = field(default_factory=dict)
    """Starts of the job, by number, that recorded their end without having made an attempt."""
    is_leaving: bool = False

    def is_that_of(self, owner: Mapping[str, Any]) -> bool:
        """Return whether this job made the attempt with this `job.json`."""
        return is_made_by(owner, self.job_id, self.name)

    def folder(self, run: Run) -> Path:
        """Return submitit's folder of the job; older versions had one folder for all jobs of a run."""
        own = run.job_folder(self.name)
        return own if own.is_dir() else run.submitit

    def log(self, run: Run, stream: str = "err") -> Path:
        """Return the log of the job's output before an attempt redirects it; `stream` is out or err."""
        return job_log(self.folder(run), str(self.job_id), stream)


_NEEDED = {"intent": {"folds", "time", "exclude"}, "submitted": {"job_id"}, "ended": {"start", "cause"}}
"""Fields that a row of each event must have."""


def record(run: Run, event: str, **details: Any) -> None:
    """Append an event, and flush it to the disk."""
    append_json_line(run.journal, {"event": event, "time": time.time(), **details}, durable=True)


def submissions(run: Run) -> list[Submission]:
    """Return the jobs of a run in the order in which they were requested."""
    found: dict[str, Submission] = {}
    for row in map(typed, read_json_lines(run.journal)):
        name, event = row.get("name"), row.get("event")
        if name is None or not _NEEDED.get(str(event), set()) <= row.keys():
            continue  # written by another version
        if event == "intent":
            found[name] = Submission(
                name,
                tuple(row["folds"]),
                row["time"],
                row.get("pickle"),
                memory_gb=row.get("memory_gb"),
                exclude=tuple(row["exclude"]),
                after=tuple(Run(Path(path)) for path in map(str, row.get("after", []))),
            )
        elif event == "submitted" and name in found:
            found[name] = replace(found[name], job_id=row["job_id"], process=process_in(row.get("process", {})))
        elif event == "ended" and name in found:
            start = {row["start"]: Fruitless(row["cause"], row.get("lasted_s"))}
            found[name] = replace(found[name], fruitless=start | dict(found[name].fruitless))  # the first record wins
        elif event == "void" and name in found:
            found[name] = replace(found[name], void=True, refusal=row.get("refusal"))
        elif event == "leaving" and name in found:
            found[name] = replace(found[name], is_leaving=True)
    return list(found.values())


def last_submission(run: Run, fold: str) -> Submission | None:
    """Return the newest job of a fold that the scheduler accepted; None if there is none."""
    return newest_submissions(submissions(run)).get(fold)


def newest_submissions(jobs: list[Submission]) -> dict[str, Submission]:
    """Return the newest job of each fold that the scheduler accepted."""
    return {fold: job for job in jobs if job.job_id is not None for fold in job.folds}


def newest_asked(jobs: list[Submission]) -> dict[str, Submission]:
    """Return the newest job of each fold that was requested, even if the scheduler did not accept it."""
    return {fold: job for job in jobs for fold in job.folds}
