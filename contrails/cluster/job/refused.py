"""Jobs that the scheduler refused for a limit: other jobs of the run submit them when they start or end.

A site may limit the queued jobs so much that a job cannot submit its continuation in time, or that a run gets only
some of its jobs. The limit allows another job when one has ended, which the jobs of the same run notice first. A job
counts until it has left the queue: if all jobs of a run end at once, the last one waits until the others are gone.
"""

import time

from contrails.cluster.ends import read_end, retries_left, write_end
from contrails.cluster.queue.journal import newest_asked, record, submissions
from contrails.cluster.queue.requests import fold_request
from contrails.cluster.queue.submission import leave_to_others, reconcile, submit_job, submitting
from contrails.cluster.schedulers.base import scheduler_of
from contrails.cluster.schedulers.sites import Site
from contrails.cluster.status.fold_state import fold_state
from contrails.errors import ClusterError, LimitReached
from contrails.files import read_hint
from contrails.runs.config import RunConfig
from contrails.runs.folder import Fold, Run
from contrails.train.attempt import BEAT_S

_SILENT_S = 3 * BEAT_S
_PATIENCE_S = 60.0
_RETRY_S = 5.0


def submit_refused(run: Run, config: RunConfig, site: Site, *, is_leaving: bool = False) -> None:
    """Submit the folds of a run that nothing trains because the scheduler refused their job.

    Args:
        run: the run of the folds.
        config: its frozen configuration.
        site: its site profile.
        is_leaving: whether the calling job is about to end. If all other jobs of the run are about to end too, it
            waits up to a minute until they have left the queue.

    Raises:
        ClusterError: the scheduler refuses again, or does not answer; the next call tries again.
    """
    give_up = time.monotonic() + _PATIENCE_S
    has_queue = scheduler_of(site).CAPABILITIES.has_queue
    while has_queue and any(map(_may_be_refused, run.folds())):
        with submitting(run):
            try:
                _submit_refused(run, config, site)
                break
            except LimitReached:
                if not is_leaving:
                    raise
                name = scheduler_of(site).this_job().name
                _record_leaving(run, name)
                if not _all_others_leave(run, site, name) or time.monotonic() > give_up:
                    raise
        time.sleep(_RETRY_S)


def _submit_refused(run: Run, config: RunConfig, site: Site) -> None:
    jobs = reconcile(run, site)
    refused = [fold for fold in run.folds() if fold_state(fold, jobs).cause == "refused"]
    for fold in refused:
        _record_silent_end(fold)
    keys = {fold.key for fold in refused if _has_budget(fold, site)}
    asked = newest_asked(submissions(run))
    for job in {asked[key].name: asked[key] for key in keys}.values():
        folds = [key for key in job.folds if key in keys]
        request = fold_request(run, config, folds, memory_gb=job.memory_gb, exclude=job.exclude)
        try:
            submit_job(run, site, request)
        except ClusterError as error:
            if request.name not in {row.name for row in submissions(run) if not row.void}:  # otherwise it may exist
                leave_to_others(run, request, error)
            raise


def _record_leaving(run: Run, name: str) -> None:
    """Record that this job is about to end; the caller holds the lock, so exactly one job is the last to do so."""
    known = {job.name: job for job in submissions(run) if job.folds}
    if name in known and not known[name].is_leaving:  # unknown if the user has renamed the job
        record(run, "leaving", name=name)


def _all_others_leave(run: Run, site: Site, name: str) -> bool:
    """Return whether the run has other jobs with folds, and all of them are about to end."""
    known = {job.name: job for job in submissions(run) if job.folds}
    alive = {job.name for job in reconcile(run, site).values() if job.state != "ended"}
    others = [known[other] for other in alive - {name} if other in known]
    return bool(others) and all(job.is_leaving for job in others)


def _may_be_refused(fold: Fold) -> bool:
    """Return whether a fold's files allow that no job trains it; only then the scheduler must be asked."""
    if fold.done.exists() or fold.cancelled.exists():
        return False
    last, attempts = newest_asked(submissions(fold.run)).get(fold.key), fold.attempts()
    if last is None or not attempts:
        return last is not None and bool(last.fruitless or last.refusal)
    beat = read_hint(attempts[-1].state).get("time")
    is_silent = isinstance(beat, float) and time.time() - beat > _SILENT_S
    return bool(last.refusal) or is_silent or read_end(attempts[-1]) is not None


def _record_silent_end(fold: Fold) -> None:
    """Record that the last attempt is lost, if it has not recorded its end."""
    attempts = fold.attempts()
    if attempts and read_end(attempts[-1]) is None:
        write_end(fold, attempts[-1], "lost")


def _has_budget(fold: Fold, site: Site) -> bool:
    """Return whether the last attempt, if any, may be followed by another."""
    attempts = fold.attempts()
    end = read_end(attempts[-1]) if attempts else None
    return end is None or retries_left(fold, end.cause, site.retries) > 0
