"""The last step of a batch script: retries folds that the launcher could not hand over, without a user logged in.

`python -m contrails.cluster.job.teardown RUN FOLD[,FOLD...] CODE` gets the exit code of the launcher. It does nothing
if the job handed itself over. Otherwise it compares the cause of each unfinished fold with its retries, and requeues
the job, or submits another one that asks for more memory or avoids the node.
"""

import signal
import sys
from functools import partial
from pathlib import Path

from contrails.cluster.ends import End, read_end, write_end
from contrails.cluster.job.handover import CAUSES, may_retry, note_end, num_failures, own_attempt
from contrails.cluster.job.hooks import finish_hooks, start_hook
from contrails.cluster.job.launch import tell_failure
from contrails.cluster.job.refused import submit_refused
from contrails.cluster.job.signals import ignore_signals
from contrails.cluster.memory import Peak, peak_of
from contrails.cluster.outcomes import Cause, cause_of_exit, next_step
from contrails.cluster.queue.journal import last_submission, submissions
from contrails.cluster.queue.requests import fold_request
from contrails.cluster.queue.submission import leave_to_others, pass_on, submit_job, submitting
from contrails.cluster.queue.then import start_if_due
from contrails.cluster.schedulers.base import Standing, ThisJob, scheduler_of
from contrails.cluster.schedulers.sites import Site
from contrails.errors import ContrailsError, LimitReached, NodeError, Stopped
from contrails.files import read_hint, to_json, write_atomic
from contrails.progress import tell
from contrails.recipe.reading import parse
from contrails.runs.config import RunConfig
from contrails.runs.folder import Attempt, Fold, Run
from contrails.train.attempt import OVER

_MORE = 1.5
_UNFINISHED = 1
"""Exit code of a job with an unfinished fold although srun returned 0, as when its slurmstepd was killed."""


def main() -> None:
    """Retry what may be retried; the batch script ends with the exit code of this process."""
    run, keys, code = Run(Path(sys.argv[1])), sys.argv[2].split(","), int(sys.argv[3])
    config = run.read_config()
    site = parse(Site, config.site, str(run.toml))
    try:
        code = _settle(run, config, site, [run.fold(key) for key in keys], code)
    except ContrailsError as error:
        tell(f"error: {error}")
        code = code or error.exit_code
    tell_failure(start_if_due, run, config, site)  # in case the launcher died before it did this
    if code != Stopped.exit_code:
        tell_failure(partial(submit_refused, is_leaving=True), run, config, site)
    sys.exit(code)


def _settle(run: Run, config: RunConfig, site: Site, folds: list[Fold], code: int) -> int:
    """Return the exit code of the job, which tells a chain of jobs whether to go on."""
    scheduler = scheduler_of(site)
    job = scheduler.this_job()
    open_folds = [fold for fold in folds if not fold.done.exists() and not fold.cancelled.exists()]
    if not open_folds:
        return scheduler.last_code(code)
    if code == Stopped.exit_code or any(_is_handed_over(fold, job) for fold in open_folds):
        return Stopped.exit_code
    ignore_signals()
    standing = scheduler.standing(job)
    causes = _record_causes(open_folds, job, site, code, standing)
    code = code or _UNFINISHED
    if standing in ("requeued", "cancelled"):
        return scheduler.last_code(code)
    again = [fold for fold in open_folds if may_retry(fold, causes[fold], job, site) and _is_newest(fold, job)]
    given_up = [fold for fold in open_folds if fold not in again]
    # before the lock is taken, since other jobs submit meanwhile, and before a requeue, which would kill the hooks
    finish_hooks([hook for fold in given_up for hook in start_hook(config.site, "on_failed", fold)])
    with submitting(run):
        again = [fold for fold in again if _is_newest(fold, job)]
        changes = {causes[fold] for fold in again} & {"memory", "node"}
        if again and scheduler.requeue(job, changes):
            return 137 if "memory" in changes else NodeError.exit_code if changes else Stopped.exit_code
        if changes:
            _submit_changed(run, config, site, again, changes, job)
        elif again:
            tell(f"error: job {job.job_id} was not requeued; {next_step('lost', run)}")
    return scheduler.last_code(code)


def _is_handed_over(fold: Fold, job: ThisJob) -> bool:
    end = _own_end(fold, job)
    return end is not None and end.handed_over


def _own_end(fold: Fold, job: ThisJob) -> End | None:
    attempt = own_attempt(fold, job)
    return read_end(attempt) if attempt is not None else None


def _record_causes(folds: list[Fold], job: ThisJob, site: Site, code: int, standing: Standing) -> dict[Fold, Cause]:
    """Record and return why each fold's attempt ended; if unrecorded, by the scheduler's answer and the exit code."""
    causes = {fold: end.cause for fold in folds if (end := _own_end(fold, job)) is not None}
    unsaid = [fold for fold in folds if fold not in causes]
    peak = _peak(job, site) if unsaid and code == 128 + signal.SIGKILL and standing == "running" else None
    lasted_s = 60.0 * site.walltime_min if standing == "timeout" else None
    for fold in unsaid:
        attempt = own_attempt(fold, job)
        if attempt is None and (noted := _noted(fold, job)) is not None:
            causes[fold] = noted
            continue
        causes[fold] = CAUSES.get(standing) or cause_of_exit(code, peak)
        if attempt is None:
            note_end(fold, causes[fold], job, lasted_s)
            continue
        _say(attempt, f"its whole job ended with exit code {code}{f', having used at most {peak}' if peak else ''}")
        write_end(fold, attempt, causes[fold], handed_over=standing == "requeued", lasted_s=lasted_s)
    return causes


def _noted(fold: Fold, job: ThisJob) -> Cause | None:
    """Return why this start of the job ended, if the launcher recorded it for a fold without an attempt."""
    last = last_submission(fold.run, fold.key)
    said = last.fruitless.get(job.restart_count) if last is not None and last.name == job.name else None
    return None if said is None else said.cause


def _peak(job: ThisJob, site: Site) -> Peak | None:
    used_gb = scheduler_of(site).peak_gb(job)
    return None if used_gb is None else peak_of(used_gb, job.memory_gb or site.memory_gb)


def _say(attempt: Attempt, reason: str) -> None:
    state = read_hint(attempt.state)
    if state.get("status") not in OVER:
        write_atomic(attempt.state, to_json(state | {"status": "failed", "reason": reason}))


def _is_newest(fold: Fold, job: ThisJob) -> bool:
    """Return whether this job is still the fold's newest one."""
    last = last_submission(fold.run, fold.key)
    return last is not None and last.name == job.name


def _submit_changed(
    run: Run, config: RunConfig, site: Site, folds: list[Fold], changes: set[Cause], job: ThisJob
) -> None:
    """Submit the folds as a new job, since memory and nodes of this one can no longer be changed."""
    last = last_submission(run, folds[0].key)
    memory_gb, exclude = (last.memory_gb, last.exclude) if last else (None, ())
    if "memory" in changes:
        memory_gb = _more_memory_gb(run, site, folds, job)
    if "node" in changes and job.node:
        exclude = _avoided(exclude, job.node, max(num_failures(fold, "node", job) for fold in folds))
    keys = [fold.key for fold in folds]
    request = fold_request(run, config, keys, memory_gb=memory_gb, exclude=exclude)
    try:
        submit_job(run, site, request)
    except LimitReached as error:
        leave_to_others(run, request, error)
        raise
    pass_on(run, scheduler_of(site))


def _avoided(before: tuple[str, ...], node: str, num_in_a_row: int) -> tuple[str, ...]:
    """Return the nodes to avoid: those of the failures in a row, newest last; a new snapshot restarts the count."""
    return (*before[max(0, len(before) - num_in_a_row + 1) :], node)


def _more_memory_gb(run: Run, site: Site, folds: list[Fold], job: ThisJob) -> float:
    """Return the memory in GB: half as much again for each kill in a row; a new snapshot restarts the count.

    It is at most what a node has; a larger request would be refused or wait forever.
    """
    first_gb = site.memory_gb or min(
        [job.memory_gb or 1.0, *(one.memory_gb / _MORE for one in submissions(run) if one.memory_gb is not None)]
    )
    wanted_gb = first_gb * _MORE ** max(num_failures(fold, "memory", job) for fold in folds)
    return min(wanted_gb, scheduler_of(site).largest_memory_gb(site) or wanted_gb)


if __name__ == "__main__":
    main()
