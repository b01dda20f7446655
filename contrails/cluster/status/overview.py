"""The states of the folds of many runs, with a single query per scheduler."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from contrails.cluster.queue.journal import newest_submissions, submissions
from contrails.cluster.queue.submission import reference
from contrails.cluster.queue.then import unfinished_job
from contrails.cluster.schedulers.base import SCHEDULERS, Job, Reference, Scheduler, scheduler_called
from contrails.cluster.status.fold_state import DAMAGED, DONE, FoldState, fold_state
from contrails.cluster.status.usage import UNUSED, usage_of
from contrails.errors import ClusterError, RecipeError, StorageError
from contrails.files import read_toml
from contrails.runs.folder import Run

Words = dict[str, Job] | None
"""What a scheduler knows of jobs, by name; None if it does not answer."""


def ask_schedulers(runs: Iterable[Run]) -> dict[Run, Words]:
    """Return what the schedulers know of each run's unfinished jobs, without runs of this machine.

    A run of another version, whose scheduler cannot be read, is left out and judged by its files.
    """
    names = {run: name for run in runs if (name := _scheduler_name(run)) is not None}
    words = {}
    for name in sorted(set(names.values())):
        own = [run for run, of in names.items() if of == name]
        words[name] = _ask(scheduler_called(name), own)
    return {run: words[name] for run, name in names.items()}


def overview(runs: Sequence[Run], said: Mapping[Run, Words] | None = None) -> dict[Run, list[FoldState]]:
    """Return the state of every fold of the runs; the last known state, marked stale, if a scheduler does not answer.

    `said` is the result of `ask_schedulers`, which is called if it is not given.
    """
    said = ask_schedulers(runs) if said is None else said
    return {run: _states(run, said) for run in runs}


def has_queue(run: Run) -> bool:
    """Return whether the jobs of a run are in the queue of a scheduler."""
    return _scheduler_name(run) is not None


def _states(run: Run, said: Mapping[Run, Words]) -> list[FoldState]:
    """Return the states of a run's folds; a single row for the run if its files cannot be read."""
    jobs = said.get(run)
    stale = run in said and jobs is None
    try:
        rows = [fold_state(fold, jobs) for fold in run.folds()]
        used = usage_of(run)
    except StorageError as error:
        return [FoldState("", DAMAGED, reason=str(error))]
    return [replace(row, stale=stale and row.state != DONE, usage=used.get(row.fold, UNUSED)) for row in rows]


def _scheduler_name(run: Run) -> str | None:
    """Return the name of the run's scheduler, None if it has no queue; other keys of the site are not read."""
    try:
        submissions(run)
        site = read_toml(run.toml, "a run").get("site")
    except (RecipeError, StorageError):
        return None
    name = site.get("scheduler") if isinstance(site, dict) else None
    return name if name in SCHEDULERS and scheduler_called(name).CAPABILITIES.has_queue else None


def _ask(scheduler: Scheduler, runs: list[Run]) -> Words:
    """Return what the scheduler knows of the jobs of unfinished folds and of `--then` commands, by name.

    The last job of the folds starts the command, so jobs of finished folds are asked about too until it has started.
    """
    wanted: dict[str, Reference] = {}
    for run in runs:
        newest = newest_submissions(submissions(run))
        starts_later = run.then.exists() and not run.then_claim.exists()
        jobs = [job for fold, job in newest.items() if starts_later or not run.fold(fold).done.exists()]
        if (following := unfinished_job(run)) is not None:
            jobs.append(following)
        wanted |= {job.name: reference(run, job) for job in jobs}
    if not wanted:
        return {}
    try:
        return scheduler.look(list(wanted.values()))
    except ClusterError:
        return None
