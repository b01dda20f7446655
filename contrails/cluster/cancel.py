"""The end of folds for good: a tombstone first, so that nothing comes back, then the jobs that have no other fold."""

import time

from contrails.cluster.journal import newest_submissions, submissions
from contrails.cluster.overview import site_of
from contrails.cluster.scheduler import Job, scheduler_of
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
        over = [job.job_id for job in newest.values() if job.job_id and all(map(_is_over, map(run.fold, job.folds)))]
        jobs, scheduler = dict.fromkeys(over, run.submitit), scheduler_of(site)
        known = scheduler.look(jobs, {}) if jobs else {}
        scheduler.cancel({job_id: folder for job_id, folder in jobs.items() if _lives(known.get(job_id))})
    return {fold.key: "done already" if fold.done.exists() else "cancelled" for fold in folds}


def _lives(job: Job | None) -> bool:
    return job is not None and job.state != "ended"


def _is_over(fold: Fold) -> bool:
    return fold.done.exists() or fold.cancelled.exists()
