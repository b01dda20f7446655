"""Cancelling folds: first a tombstone, so that nothing starts again, then the jobs that have no other fold."""

import time

from contrails.cluster.queue.journal import submissions
from contrails.cluster.queue.submission import reference
from contrails.cluster.schedulers.base import scheduler_of
from contrails.cluster.schedulers.sites import site_of
from contrails.files import create_exclusive, to_json
from contrails.runs.folder import Fold, Run


def cancel_folds(run: Run, folds: list[Fold]) -> dict[str, str]:
    """Cancel folds and return what happened to each.

    A fold that trains beside others in a job is stopped by its launcher, which looks for the tombstone every 2 s.

    Raises:
        ClusterError: the scheduler does not answer; the tombstones exist, so nothing will be started again.
    """
    for fold in folds:
        if not fold.done.exists():
            create_exclusive(fold.cancelled, to_json({"time": time.time()}))
    site, keys = site_of(run), {fold.key for fold in folds}
    # all jobs, even replaced or unanswered ones: a job that the scheduler has forgotten may still run
    jobs = [job for job in submissions(run) if not job.void and keys & set(job.folds)]
    scheduler_of(site).cancel([reference(run, job) for job in jobs if all(map(_is_over, map(run.fold, job.folds)))])
    return {fold.key: "done already" if fold.done.exists() else "cancelled" for fold in folds}


def _is_over(fold: Fold) -> bool:
    return fold.done.exists() or fold.cancelled.exists()
