"""In a scheduler's job: the clock of its time, the way back into the queue, and who trains after a restart.

The launcher asks here; what ends an attempt is written beside it (`contrails.cluster.ends`), where the teardown of the
batch script, the next start of the job and `contrails status` read it.
"""

import itertools
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from contrails.cluster.ends import read_end, retries_left, write_end
from contrails.cluster.journal import last_submission, record, submissions
from contrails.cluster.scheduler import Cause, Scheduler, Standing, ThisJob, scheduler_of
from contrails.cluster.sites import Site
from contrails.files import read_hint, to_json, write_atomic
from contrails.history import covered_step
from contrails.runs import Attempt, Fold
from contrails.train.attempt import is_made_by

_EARLY_S = 61
"""Slurm sends the signal of a time that is nearly over up to a minute too early."""

CAUSES: dict[Standing, Cause] = {"timeout": "walltime", "requeued": "preemption", "cancelled": "cancelled"}
"""What the scheduler's word says about why a job ends; while it lets the job run, other signs count."""


@dataclass
class Clock:
    """When the job must hand over; the scheduler is asked again when that seems to be now.

    The end stands in the file `path` too, for the trainings, which know how long a step and a snapshot take (see
    `contrails.train.stop`); `margin_s` is for what they do not know.
    """

    scheduler: Scheduler
    job: ThisJob
    margin_s: float
    path: Path
    deadline: float | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._ask()

    def due(self) -> bool:
        """Return whether it is time to save and leave."""
        if not self._within(self.margin_s):
            return False
        self._ask()  # somebody may have given it more
        return self._within(self.margin_s)

    def cause(self) -> Cause:
        """Return what a signal of the scheduler means now."""
        return "walltime" if self._within(self.margin_s + _EARLY_S) else "preemption"

    def _ask(self) -> None:
        self.deadline = self.scheduler.end_time(self.job) or self.deadline
        if self.deadline is None:
            self.path.unlink(missing_ok=True)  # of an earlier start of the job
        else:
            write_atomic(self.path, to_json({"end": time.monotonic() + self.deadline - time.time()}))

    def _within(self, seconds: float) -> bool:
        return self.deadline is not None and time.time() >= self.deadline - seconds


class Progress:
    """Tells the scheduler, once, that a fold of this start has got further than the earlier ones."""

    def __init__(self, scheduler: Scheduler, job: ThisJob, folds: list[Fold]) -> None:
        self._scheduler, self._job = scheduler, job
        self._steps = {fold: covered_step(fold) for fold in folds}

    def note(self) -> None:
        """Look for new snapshots."""
        if any(covered_step(fold) > step for fold, step in self._steps.items()):
            self._scheduler.note_progress(self._job)
            self._steps = {}


def own_attempt(fold: Fold, job: ThisJob) -> Attempt | None:
    """Return the attempt that this start of the job made at a fold, if it got that far."""
    attempts = fold.attempts()
    owner = read_hint(attempts[-1].job) if attempts else {}
    mine = is_made_by(owner, job.job_id, job.name) and owner.get("restart_count") == job.restart_count
    return attempts[-1] if mine else None


def is_wanted(fold: Fold, job: ThisJob, site: Site) -> bool:
    """Return whether a fold is to be trained by this start of the job.

    What an earlier start left without a word, the scheduler has ended and started again.
    """
    if fold.done.exists() or fold.cancelled.exists():
        return False
    attempts = fold.attempts()
    if not attempts or not is_made_by(read_hint(attempts[-1].job), job.job_id, job.name):
        return True
    end = read_end(attempts[-1])
    if end is not None:
        return end.handed_over or retries_left(fold, end.cause, site.retries) > 0
    cause = scheduler_of(site).why_restarted(job)
    write_end(fold, attempts[-1], cause)
    wanted = retries_left(fold, cause, site.retries) > 0
    if wanted:
        write_end(fold, attempts[-1], cause, handed_over=True)
    return wanted


def may_retry(fold: Fold, cause: Cause, job: ThisJob, site: Site) -> bool:
    """Return whether this start of the job, which ended for this cause, may be followed by another for the fold."""
    if own_attempt(fold, job) is None:
        return _num_fruitless(fold, job) <= getattr(site.retries, cause, 0)
    return retries_left(fold, cause, site.retries) > 0


def note_end(fold: Fold, cause: Cause, job: ThisJob) -> None:
    """Write into the journal why this start of the job ended, which has no attempt to write it to; the first counts."""
    last = last_submission(fold.run, fold.key)
    if last is not None and last.name == job.name and last.start != job.restart_count:
        record(fold.run, "ended", name=last.name, cause=cause, start=job.restart_count)


def _num_fruitless(fold: Fold, job: ThisJob) -> int:
    """Return how often jobs were started for the fold since its last attempt, this start included."""
    attempts = fold.attempts()
    last = read_hint(attempts[-1].job) if attempts else {}
    if is_made_by(last, job.job_id, job.name):
        return job.restart_count - int(last.get("restart_count") or 0)
    jobs = [one for one in submissions(fold.run) if fold.key in one.folds and one.job_id is not None]
    since = itertools.takewhile(lambda one: not one.is_that_of(last), reversed(jobs))
    return job.restart_count + len(list(since))


def hand_over(folds: list[Fold], clock: Clock, site: Site) -> bool:
    """Send the job back into the queue for folds that stopped and have budget left; return whether it goes."""
    standing = clock.scheduler.standing(clock.job)
    cause = CAUSES.get(standing) or clock.cause()
    going_on = []
    for fold in folds:
        attempt = own_attempt(fold, clock.job)
        if attempt is not None:
            if "(walltime)" in (read_hint(attempt.state).get("reason") or ""):
                cause = "walltime"  # it needed more than the margin
            write_end(fold, attempt, cause)
        if standing != "cancelled" and may_retry(fold, cause, clock.job, site):
            going_on.append((fold, attempt))
        elif attempt is None:
            note_end(fold, cause, clock.job)
            print(f"error: fold {fold.key} was stopped ({cause}) before it began an attempt", file=sys.stderr)  # noqa: T201
    if not going_on or not (standing == "requeued" or clock.scheduler.requeue(clock.job, ())):
        return False
    for fold, attempt in going_on:
        if attempt is not None:
            write_end(fold, attempt, cause, handed_over=True)
    return True
