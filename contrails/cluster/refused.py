"""Folds whose next job the scheduler did not take: the other jobs of the run submit them when they start and end.

A site may allow so few queued jobs that one which must go on finds no room for its next job while its time lasts. Room
comes when other jobs end, which those of the same run see first.
"""

from contrails.cluster.ends import read_end
from contrails.cluster.journal import last_submission, newest_submissions, submissions
from contrails.cluster.sites import Site
from contrails.cluster.states import fold_state
from contrails.cluster.submission import reconcile, submit_job, submitting
from contrails.config import RunConfig
from contrails.runs import Fold, Run


def submit_refused(run: Run, config: RunConfig, site: Site) -> None:
    """Submit the folds of a run that nobody goes on with since the scheduler refused their next job.

    Raises:
        ClusterError: it refuses again, or does not answer; the next call tries again.
    """
    # here, since the request names what the launcher does, and the launcher calls this
    from contrails.cluster.requests import fold_request

    if site.scheduler == "local" or not any(map(_may_be_refused, run.folds())):
        return
    with submitting(run):
        jobs = reconcile(run, site)
        refused = [fold.key for fold in run.folds() if fold_state(fold, jobs).cause == "refused"]
        newest = newest_submissions(submissions(run))
        for job in {newest[key].name: newest[key] for key in refused}.values():
            keys = [key for key in job.folds if key in refused]
            request = fold_request(run, config.compute.num_threads, keys, memory_gb=job.memory_gb, exclude=job.exclude)
            submit_job(run, site, request)


def _may_be_refused(fold: Fold) -> bool:
    """Return whether a fold has stopped, by its own files: most have not, and then nobody need be asked."""
    if fold.done.exists() or fold.cancelled.exists():
        return False
    attempts, last = fold.attempts(), last_submission(fold.run, fold.key)
    return last is not None and bool(last.fruitless or (attempts and read_end(attempts[-1]) is not None))
