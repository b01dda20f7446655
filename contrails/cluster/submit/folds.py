"""Submitting the folds of a run that are neither finished nor alive."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from contrails.cluster.queue.journal import newest_submissions, submissions
from contrails.cluster.queue.requests import fold_request
from contrails.cluster.queue.submission import pass_on, reconcile, reference, submit_jobs, submitting
from contrails.cluster.schedulers.base import Job, Request, scheduler_of
from contrails.cluster.schedulers.devices import require_devices
from contrails.cluster.schedulers.sites import Site
from contrails.cluster.schedulers.slots import DEVICES
from contrails.cluster.status.fold_state import ALIVE, DAMAGED, DONE, fold_state
from contrails.cluster.submit.create import require_inputs
from contrails.cluster.submit.orphans import adopt_orphans
from contrails.errors import StorageError
from contrails.files import storage
from contrails.recipe.reading import parse
from contrails.runs.config import RunConfig
from contrails.runs.folder import Fold, Run


def grouped(folds: list[str], folds_per_job: int) -> list[list[str]]:
    """Return the folds of each job.

    >>> grouped(["0", "1", "2"], 2)
    [['0', '1'], ['2']]
    """
    return [folds[start : start + folds_per_job] for start in range(0, len(folds), folds_per_job)]


def submit_folds(
    run: Run, config: RunConfig, folds: list[str], folds_per_job: int = 1, *, after: Mapping[str, Path] | None = None
) -> dict[str, str]:
    """Submit the folds that are neither finished nor alive, `folds_per_job` per job.

    Args:
        run: the existing run.
        config: its frozen configuration, which includes the site.
        folds: keys of the wanted folds.
        folds_per_job: folds that train side by side in one job.
        after: ids of jobs that must have succeeded before, with submitit's folder of each.

    Returns:
        The outcome of each fold: a job id, or its state.

    Raises:
        ClusterError: the scheduler refuses or does not answer.
        NodeError: this machine has no GPU for the run, or CUDA_VISIBLE_DEVICES hides them.
        StorageError: the result of a fold is damaged.
    """
    site = parse(Site, config.site, str(run.toml))
    scheduler = scheduler_of(site)
    can = scheduler.CAPABILITIES
    with submitting(run):
        states = _checked_states(run, config, folds, reconcile(run, site) if can.has_queue else None)
        wanted = _wanted(states)
        on_gpus_here = bool(wanted) and can.runs_here and config.compute.device == "cuda"
        devices = require_devices(config.compute.num_ranks) if on_gpus_here else ()
        for key in wanted:
            _prepare(run.fold(key))
        _end_what_is_left(run, site, wanted)
        groups = grouped(wanted, folds_per_job)
        requests = [fold_request(run, config, group, after=after) for group in groups]
        requests = [_with_devices(request, devices) for request in requests]
        outcomes = submit_jobs(run, site, requests, is_alone=not ALIVE & set(states.values()))
        pass_on(run, scheduler)
    if can.has_queue:
        adopt_orphans(run)
    return states | outcomes


def _with_devices(request: Request, devices: Sequence[str]) -> Request:
    """Return the request of a job that may use these GPUs of this machine."""
    if not devices:
        return request
    return replace(request, environment=(request.environment or {}) | {DEVICES: ",".join(devices)})


def _end_what_is_left(run: Run, site: Site, folds: Sequence[str]) -> None:
    """Cancel the last jobs of folds that nothing trains: the scheduler may keep a held one that never starts."""
    newest = {fold: job for fold, job in newest_submissions(submissions(run)).items() if fold in folds}
    jobs = {job.name: job for job in newest.values() if set(job.folds) <= set(folds)}
    if jobs:
        scheduler_of(site).cancel([reference(run, job) for job in jobs.values()])


def plan_folds(run: Run, config: RunConfig, folds: list[str], folds_per_job: int = 1) -> dict[str, str]:
    """Return what `submit_folds` would do with each fold, after the same checks, without submitting."""
    states = _checked_states(run, config, folds, None)
    planned = {key: f"{state}, stays as it is" for key, state in states.items()}
    for number, group in enumerate(grouped(_wanted(states), folds_per_job), start=1):
        planned |= {key: f"{states[key]}, would be submitted in job {number}" for key in group}
    return planned


def _checked_states(run: Run, config: RunConfig, folds: list[str], jobs: Mapping[str, Job] | None) -> dict[str, str]:
    require_inputs(run, config, folds)
    found = {key: fold_state(run.fold(key), jobs) for key in folds}
    damaged = [state.reason for state in found.values() if state.state == DAMAGED]
    if damaged:
        raise StorageError("\n".join(str(reason) for reason in damaged))
    return {key: state.state for key, state in found.items()}


def _wanted(states: dict[str, str]) -> list[str]:
    return [key for key, state in states.items() if state not in ALIVE | {DONE}]


def _prepare(fold: Fold) -> None:
    """Create the fold's folder, and rename its tombstone away."""
    with storage(fold.path, "create"):
        fold.path.mkdir(parents=True, exist_ok=True)
        if fold.cancelled.exists():
            fold.cancelled.replace(fold.cancelled.with_suffix(".before"))
