"""Submission through the journal: every job is recorded before the scheduler is asked, and no job is submitted twice.

The order is: the intent with name and pickle, the scheduler, its answer; each is on the disk before the next. A
process that is killed in between leaves an intent without an answer; `reconcile` settles it by the job's name.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from contrails.cluster.environment import archive_variables
from contrails.cluster.queue.journal import Submission, newest_submissions, record, submissions
from contrails.cluster.schedulers.base import Job, Reference, Request, Scheduler, scheduler_of
from contrails.errors import ClusterError, LimitReached
from contrails.files import storage
from contrails.locks import locked
from contrails.processes import Process
from contrails.runs.folder import Run, run_of

if TYPE_CHECKING:
    from contrails.cluster.schedulers.sites import Site

log = logging.getLogger(__name__)


@contextmanager
def submitting(run: Run) -> Iterator[None]:
    """Hold the run's lock, since the user and the run's own jobs may submit at the same time on several nodes."""
    with locked(run.lock):
        yield


def submit_job(run: Run, site: "Site", request: Request) -> str:
    """Submit a job and return its id; the caller holds the lock.

    Raises:
        LimitReached: the scheduler refused for a limit; it accepts the job once others have ended.
        ClusterError: the scheduler refused.
    """
    folder = make_job_folder(run, request.name)
    scheduler, request = scheduler_of(site), with_archive(request, site)
    try:
        return scheduler.submit(
            folder,
            site,
            request,
            announce=lambda pickle: _intend(run, request, pickle),
            accept=lambda job_id, process: _accept(run, request, job_id, process),
        )
    except ClusterError as error:
        settled = _find_again(run, scheduler, request)
        if settled is None:
            kind = LimitReached if isinstance(error, LimitReached) else ClusterError
            raise kind(f"{error}; see `contrails doctor --site {site.name}`") from error
        return settled


def with_archive(request: Request, site: "Site") -> Request:
    """Return the request with the variables by which its job finds the archive of the site's environment."""
    more = archive_variables(site.environment_archive, site.stage_dir)
    return replace(request, environment=(request.environment or {}) | more) if more else request


def submit_jobs(run: Run, site: "Site", requests: Sequence[Request], *, is_alone: bool) -> dict[str, str]:
    """Submit jobs that train folds, and return the outcome of each fold; the caller holds the lock.

    Jobs that exceed a limit of the site are left to the other jobs of the run.

    Args:
        run: the run of the folds.
        site: site of the jobs.
        requests: the jobs.
        is_alone: whether the run has no other job that could submit the first one later.

    Raises:
        ClusterError: the scheduler refuses or does not answer.
    """
    outcomes: dict[str, str] = {}
    for number, request in enumerate(requests):
        try:
            job_id = submit_job(run, site, request)
        except LimitReached as error:
            if is_alone and number == 0:
                raise
            said = f"not accepted yet ({error}): other jobs of the run submit it when they start or end"
            for left in requests[number:]:
                leave_to_others(run, left, error)
                outcomes |= dict.fromkeys(left.folds, said)
            break
        outcomes |= dict.fromkeys(request.folds, f"submitted, job {job_id}")
    return outcomes


def leave_to_others(run: Run, request: Request, refusal: ClusterError) -> None:
    """Record a job that exceeded a limit of the site, for other jobs of the run to submit; the caller holds the lock.

    See `contrails.cluster.job.refused`.
    """
    if request.name not in {job.name for job in submissions(run)}:
        _intend(run, request, None)
    record(run, "void", name=request.name, refusal=str(refusal))


def make_job_folder(run: Run, name: str) -> Path:
    """Make submitit's folder of a job for the user alone: write access to it means running code as the user."""
    folder = run.job_folder(name)
    with storage(folder, "create"):
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def pass_on(run: Run, scheduler: Scheduler) -> None:
    """Let jobs of other runs that wait for an earlier job of a fold wait for the fold's newest job instead."""
    known = submissions(run)
    newest = {fold: str(job.job_id) for fold, job in newest_submissions(known).items()}
    replaced = {}
    for job in known:
        if job.job_id is not None:
            successors = {newest[fold] for fold in job.folds if not run.fold(fold).done.exists()}
            if successors and successors != {job.job_id}:
                replaced[job.job_id] = successors
    if not replaced:
        return
    try:
        scheduler.pass_on(replaced)
    except ClusterError as error:
        log.warning("jobs that wait for this run may still wait for a failed job: %s", error)


def _find_again(run: Run, scheduler: Scheduler, request: Request) -> str | None:
    """Return the id of a job whose submission failed, if it exists: only the answer may have been lost."""
    asked = [job for job in submissions(run) if job.name == request.name]
    if not asked:
        return None  # it failed before the scheduler was asked
    return _settle(run, scheduler, asked[0], scheduler.look([reference(run, asked[0])]))


def reference(run: Run, job: Submission) -> Reference:
    """Return what identifies a job of the journal to the scheduler."""
    return Reference(job.name, job.folder(run), job.time, job.job_id)


def reconcile(run: Run, site: "Site") -> dict[str, Job]:
    """Settle earlier submissions without an answer; return what the scheduler knows of the run's newest jobs, by name.

    Raises:
        ClusterError: the scheduler does not answer.
    """
    known = submissions(run)
    unsettled = [job for job in known if job.job_id is None and not job.void]
    newest = [*newest_submissions(known).values(), *{job.name.rpartition("a")[0]: job for job in known}.values()]
    wanted = {job.name: reference(run, job) for job in (*newest, *unsettled) if not job.void}
    scheduler = scheduler_of(site)
    jobs = scheduler.look(list(wanted.values()))
    for submission in unsettled:
        _settle(run, scheduler, submission, jobs)
    for submission in known:
        if submission.job_id and submission.pickle:  # if killed after the answer, the pickle lacks its final name
            scheduler.complete(submission.folder(run), Path(submission.pickle), submission.job_id)
    return jobs


def _intend(run: Run, request: Request, pickle: Path | None) -> None:
    record(
        run,
        "intent",
        name=request.name,
        folds=list(request.folds),
        pickle=pickle and str(pickle),
        memory_gb=request.memory_gb,
        exclude=list(request.exclude),
        after=sorted({str(other.path) for folder in request.after.values() if (other := run_of(folder))}),
    )


def _accept(run: Run, request: Request, job_id: str, process: Process | None) -> None:
    known = {"process": process.to_json()} if process is not None else {}
    record(run, "submitted", name=request.name, job_id=job_id, **known)


def _settle(run: Run, scheduler: Scheduler, submission: Submission, jobs: dict[str, Job]) -> str | None:
    """Record the job of a submission without an answer, or that there is none.

    For a while, Slurm lists a job that it has refused as a failed job that never ran.
    """
    job = jobs.get(submission.name)
    if job is None or job.never_ran:
        record(run, "void", name=submission.name)
        if submission.pickle:
            with storage(Path(submission.pickle), "remove"):
                Path(submission.pickle).unlink(missing_ok=True)
        return None
    record(run, "submitted", name=submission.name, job_id=job.job_id)
    if submission.pickle:
        scheduler.complete(submission.folder(run), Path(submission.pickle), job.job_id)
    return job.job_id
