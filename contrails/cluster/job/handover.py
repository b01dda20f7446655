"""Inside a scheduler's job: its time limit, requeueing it, and which folds it trains after a restart.

The launcher uses these functions. The end of an attempt is recorded in `contrails.cluster.ends`, where the teardown of
the batch script, the next start of the job and `contrails status` read it.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path

from contrails.cluster.ends import budget, num_ended, read_end, retries_left, write_end
from contrails.cluster.job.signals import ignore_signals
from contrails.cluster.outcomes import Cause
from contrails.cluster.queue.journal import last_submission, record, submissions
from contrails.cluster.queue.submission import reference
from contrails.cluster.schedulers.base import Scheduler, Standing, ThisJob, scheduler_of
from contrails.cluster.schedulers.sites import Site
from contrails.errors import ClusterError
from contrails.files import read_hint, to_json, write_atomic
from contrails.progress import tell
from contrails.runs.folder import Attempt, Fold
from contrails.runs.metrics import covered_step
from contrails.train.attempt import OVER, is_made_by
from contrails.train.context import JobContext

_EARLY_S = 61
"""Slurm sends the signal before the time limit up to a minute too early."""

CAUSES: dict[Standing, Cause] = {
    "timeout": "walltime", "lost": "lost", "requeued": "preemption", "cancelled": "cancelled"
}  # fmt: skip
"""The cause of a job's end by its standing; while the standing is "running", signals and exit codes decide."""


@dataclass
class Clock:
    """The end of the job's time; the scheduler is asked again when that end seems near, since it can be extended.

    The end is also written to the file `path`. The trainings read it, and stop earlier if a step and a snapshot take
    longer than `margin_s` (see `contrails.train.stop`).
    """

    scheduler: Scheduler
    job: ThisJob
    margin_s: float
    path: Path
    deadline: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._ask()

    def due(self) -> bool:
        """Return whether it is time to save and to hand over."""
        if not self._within(self.margin_s):
            return False
        self._ask()  # the limit may have been extended
        return self._within(self.margin_s)

    def cause(self) -> Cause:
        """Return what a signal of the scheduler means at this moment: "walltime" near the end, else "preemption"."""
        return "walltime" if self._within(self.margin_s + _EARLY_S) else "preemption"

    def lasted_s(self, site: Site) -> float | None:
        """Return how many seconds the job has run; None if the scheduler does not say when it will end."""
        return None if self.deadline is None else 60 * site.walltime_min - (self.deadline - time.time())

    def _ask(self) -> None:
        self.deadline = self.scheduler.end_time(self.job) or self.deadline
        if self.deadline is None:
            self.path.unlink(missing_ok=True)  # left by an earlier start of the job
        else:
            write_atomic(self.path, to_json({"end": time.monotonic() + self.deadline - time.time()}))

    def _within(self, seconds: float) -> bool:
        return self.deadline is not None and time.time() >= self.deadline - seconds


class Progress:
    """Tells the scheduler once that a fold has made progress since this start of the job."""

    def __init__(self, scheduler: Scheduler, job: ThisJob, folds: list[Fold]) -> None:
        self._scheduler, self._job = scheduler, job
        self._steps = {fold: covered_step(fold) for fold in folds}

    def note(self) -> None:
        """Check for new snapshots."""
        if any(covered_step(fold) > step for fold, step in self._steps.items()):
            self._scheduler.note_progress(self._job)
            self._steps = {}


def context_of(site: Site, job: ThisJob) -> JobContext:
    """Return what every launcher of a job passes to the processes that it starts."""
    return JobContext(
        scheduler=site.scheduler,
        job_id=job.job_id,
        job_name=job.name,
        restart_count=job.restart_count,
        node=job.node,
        memory_gb=job.memory_gb or site.memory_gb,
        num_nodes=site.num_nodes,
    )


def own_attempt(fold: Fold, job: ThisJob) -> Attempt | None:
    """Return the attempt that this start of the job made at a fold, if any."""
    attempts = fold.attempts()
    owner = read_hint(attempts[-1].job) if attempts else {}
    mine = is_made_by(owner, job.job_id, job.name) and owner.get("restart_count") == job.restart_count
    return attempts[-1] if mine else None


def record_silent_end(fold: Fold, job: ThisJob, site: Site) -> None:
    """Record why the job's last start ended, if no other process did, and whether the job continues the fold."""
    if not _is_open(fold) or (attempt := _last_attempt(fold, job)) is None or read_end(attempt) is not None:
        return
    cause = scheduler_of(site).why_restarted(job)
    write_end(fold, attempt, cause)
    if retries_left(fold, cause, site.retries) > 0:
        write_end(fold, attempt, cause, handed_over=True)


def is_wanted(fold: Fold, job: ThisJob, site: Site) -> bool:
    """Return whether this start of the job trains a fold; `record_silent_end` must be called before."""
    if not _is_open(fold):
        return False
    attempt = _last_attempt(fold, job)
    end = read_end(attempt) if attempt is not None else None
    return attempt is None or (end is not None and (end.handed_over or retries_left(fold, end.cause, site.retries) > 0))


def _is_open(fold: Fold) -> bool:
    return not fold.done.exists() and not fold.cancelled.exists()


def _last_attempt(fold: Fold, job: ThisJob) -> Attempt | None:
    """Return the last attempt at a fold if any start of this job made it."""
    attempts = fold.attempts()
    return attempts[-1] if attempts and is_made_by(read_hint(attempts[-1].job), job.job_id, job.name) else None


def ended_jobs(folds: list[Fold], scheduler: Scheduler, job: ThisJob) -> list[str]:
    """Return the names of jobs that the scheduler reports as ended, but whose attempts have not recorded an end.

    If it does not know a job, or does not answer, the new attempt waits for the old one (`contrails.train.attempt`).
    """
    wanted = []
    for fold in folds:
        attempts = fold.attempts()
        if not attempts or read_hint(attempts[-1].state).get("status") in OVER:
            continue
        owner = read_hint(attempts[-1].job)
        wanted += [one for one in submissions(fold.run) if one.is_that_of(owner) and one.name != job.name]
    try:
        known = scheduler.look([reference(folds[0].run, one) for one in wanted]) if wanted else {}
    except ClusterError as error:
        tell(f"warning: the scheduler does not answer, so attempts of earlier jobs are waited for: {error}")
        return []
    return [name for name, one in known.items() if one.state == "ended"]


def may_retry(fold: Fold, cause: Cause, job: ThisJob, site: Site) -> bool:
    """Return whether the job may start again for a fold, after this start has ended for this cause."""
    return num_failures(fold, cause, job) <= budget(cause, site.retries)


def num_failures(fold: Fold, cause: Cause, job: ThisJob) -> int:
    """Return how many starts in a row, including this one, have ended for this cause without a new snapshot.

    A start whose cause was not recorded is counted whatever the cause is.
    """
    attempts, count = fold.attempts(), 0
    owner = read_hint(attempts[-1].job) if attempts else {}
    for one in reversed(submissions(fold.run)):
        if fold.key not in one.folds or one.job_id is None:
            continue
        trained = one.is_that_of(owner)
        first = int(owner.get("restart_count") or 0) + 1 if trained else 0
        last = job.restart_count if one.name == job.name else max(one.fruitless, default=0)
        for start in range(last, first - 1, -1):
            if start in one.fruitless and one.fruitless[start].cause != cause:
                return count
            count += 1
        if trained:
            break
    return count + num_ended(fold, cause)


def note_end(fold: Fold, cause: Cause, job: ThisJob, lasted_s: float | None = None) -> None:
    """Record in the journal why this start of the job ended without an attempt; the first record is kept."""
    last = last_submission(fold.run, fold.key)
    if last is not None and last.name == job.name and job.restart_count not in last.fruitless:
        record(fold.run, "ended", name=last.name, cause=cause, start=job.restart_count, lasted_s=lasted_s)


def hand_over(folds: list[Fold], clock: Clock, site: Site) -> bool:
    """Requeue the job for stopped folds that have retries left; return whether it will start again."""
    ignore_signals()
    standing, lasted_s = clock.scheduler.standing(clock.job), clock.lasted_s(site)
    cause = CAUSES.get(standing) or clock.cause()
    going_on = []
    for fold in folds:
        attempt = own_attempt(fold, clock.job)
        if attempt is None:
            note_end(fold, cause, clock.job, lasted_s)
        else:
            if read_hint(attempt.state).get("asked_by") == "walltime":
                cause = "walltime"  # the training stopped before the margin, since a step takes longer than that
            write_end(fold, attempt, cause, lasted_s=lasted_s)
        if standing != "cancelled" and may_retry(fold, cause, clock.job, site):
            going_on.append((fold, attempt))
        elif attempt is None:
            tell(f"error: fold {fold.key} was stopped ({cause}) before it began an attempt")
    if not going_on or not (standing == "requeued" or clock.scheduler.requeue(clock.job, ())):
        return False
    for fold, attempt in going_on:
        if attempt is not None:
            write_end(fold, attempt, cause, handed_over=True, lasted_s=lasted_s)
    return True
