"""Jobs that waited for another run and left the PBS queue when that run failed; PBS keeps no such job.

They are submitted again when that run continues, and then wait for its new jobs. On Slurm they stay in the queue, and
`contrails.cluster.queue.submission.pass_on` changes what they wait for.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from contrails.cluster.queue import own_code
from contrails.cluster.queue.journal import Submission, newest_submissions, submissions
from contrails.cluster.queue.requests import fold_request
from contrails.cluster.queue.submission import reconcile, submit_job, submitting
from contrails.cluster.schedulers.base import Job, scheduler_of
from contrails.cluster.schedulers.sites import site_of
from contrails.errors import ContrailsError
from contrails.runs.folder import Run

log = logging.getLogger(__name__)


def adopt_orphans(run: Run) -> None:
    """Submit again the jobs that left because this run had failed; a warning about a failure says how to retry."""
    newest = newest_submissions(submissions(run))
    parents = {str(job.job_id): job.folder(run) for key, job in newest.items() if not run.fold(key).done.exists()}
    for path in sorted(run.path.parent.glob("*/run.toml")):
        other = Run(path.parent)
        try:
            waits = any(run in job.after for job in newest_submissions(submissions(other)).values())
            if waits and _adopt(other, run, parents):
                adopt_orphans(other)
        except ContrailsError as error:
            log.warning(
                "%s, which waits for %s, was not submitted again: %s; retry with `contrails resume %s`",
                *(other.name, run.name, error, run.typed),
            )


def _adopt(other: Run, parent: Run, parents: Mapping[str, Path]) -> bool:
    """Submit again the folds of a run whose jobs have left; return whether this process did so for any."""
    site, config = site_of(other), other.read_config()
    if not scheduler_of(site).CAPABILITIES.has_queue:
        return False
    with submitting(other):
        left = _left(other, parent, reconcile(other, site))
        if own_code.is_imported(config):
            for job, folds in left:
                memory_gb, exclude = job.memory_gb, job.exclude
                request = fold_request(other, config, folds, after=parents, memory_gb=memory_gb, exclude=exclude)
                submit_job(other, site, request)
            return bool(left)
    for _, folds in left:
        own_code.submit(other, config, folds, len(folds), after=str(parent.path))
    return False  # its own code has already looked for runs that wait for it


def _left(other: Run, parent: Run, known: Mapping[str, Job]) -> list[tuple[Submission, list[str]]]:
    """Return the jobs of a run that left because its parent failed, each with the folds to submit again."""
    newest = newest_submissions(submissions(other))
    left = {job.name: job for job in newest.values() if parent in job.after and _has_left(known.get(job.name))}
    wanted = []
    for job in left.values():
        folds = [key for key in job.folds if newest[key] == job and not _is_over(other, key)]
        if folds:
            wanted.append((job, folds))
    return wanted


def _has_left(job: Job | None) -> bool:
    return job is not None and job.is_orphan and job.state == "ended"


def _is_over(run: Run, key: str) -> bool:
    return run.fold(key).done.exists() or run.fold(key).cancelled.exists()
