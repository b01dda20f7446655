"""The end of folds for good: a tombstone first, so that nothing comes back, then the jobs that have no other fold."""

import time

from contrails.cluster.journal import newest_submissions, submissions
from contrails.cluster.overview import site_of
from contrails.cluster.scheduler import scheduler_of
from contrails.files import create_exclusive, to_json
from contrails.runs import Fold, Run


def cancel_folds(run: Run, folds: list[Fold]) -> dict[str, str]:
    """Cancel folds and return what happened to each.

    A fold that trains beside others in a job is stopped by its launcher, which looks for the tombstone every 2 s.

    Raises:
        ClusterError: the scheduler does not answer; the tombstones are there, so nothing will be started again.
    """
    for fold in folds:
        if not fold.done.exists():
            create_exclusive(fold.cancelled, to_json({"time": time.time()}))
    site, newest = site_of(run), newest_submissions(submissions(run))
    if site.scheduler != "local":
        ids = {job.job_id for job in newest.values() if job.job_id and all(map(_is_over, map(run.fold, job.folds)))}
        scheduler = scheduler_of(site)
        alive = {job_id for job_id, job in scheduler.look(ids, {}).items() if job.state != "ended"} if ids else set()
        scheduler.cancel(alive)
    return {fold.key: "done already" if fold.done.exists() else "cancelled" for fold in folds}


def _is_over(fold: Fold) -> bool:
    return fold.done.exists() or fold.cancelled.exists()
