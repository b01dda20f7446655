"""The folds of runs with the scheduler's word: asked once, however many runs and jobs there are."""

from collections.abc import Iterable
from dataclasses import replace

from contrails.cluster.journal import newest_submissions, submissions
from contrails.cluster.scheduler import Job, scheduler_of
from contrails.cluster.sites import Site
from contrails.cluster.states import DONE, FoldState, fold_state
from contrails.cluster.submission import reference
from contrails.config import parse
from contrails.errors import ClusterError, RecipeError
from contrails.runs import Run


def site_of(run: Run) -> Site:
    """Return the site that a run was made for."""
    config = run.read_config()
    return parse(Site, config.site, str(run.toml))


def overview(runs: Iterable[Run]) -> dict[Run, list[FoldState]]:
    """Return the state of every fold of the runs; where a scheduler does not answer, the last known and stale.

    A run of another version, whose site cannot be read, is judged by its files.
    """
    sites = {run: _readable_site(run) for run in runs}
    words: dict[str, dict[str, Job] | None] = {
        name: _ask(site, [run for run, of in sites.items() if of.scheduler == name])
        for name, site in {site.scheduler: site for site in sites.values() if site.scheduler != "local"}.items()
    }
    found = {}
    for run, site in sites.items():
        jobs = words.get(site.scheduler)
        stale = site.scheduler != "local" and jobs is None
        rows = [fold_state(fold, jobs) for fold in run.folds()]
        found[run] = [replace(row, stale=stale and row.state != DONE) for row in rows]
    return found


def _readable_site(run: Run) -> Site:
    try:
        return site_of(run)
    except RecipeError:
        return Site(name="unknown")


def _ask(site: Site, runs: list[Run]) -> dict[str, Job] | None:
    """Return what the scheduler knows of the jobs of the runs' unfinished folds, by name."""
    newest = {run: newest_submissions(submissions(run)) for run in runs}
    wanted = {
        job.name: reference(run, job)
        for run, jobs in newest.items()
        for fold, job in jobs.items()
        if not run.fold(fold).done.exists()
    }
    if not wanted:
        return {}
    try:
        return scheduler_of(site).look(list(wanted.values()))
    except ClusterError:
        return None
