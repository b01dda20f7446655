"""`contrails submit`: train the folds of a recipe in background jobs."""

import json
import shlex
import sys
from pathlib import Path

import click

from contrails.cli.complete import complete_runs, complete_sites
from contrails.cli.options import json_option, name_option, overrides_option, read_recipe, recipe_argument
from contrails.cli.results.aggregate import aggregate, check, options_of
from contrails.cli.watch.status import print_states
from contrails.cli.watch.watch import watch_folds
from contrails.cluster.queue.journal import newest_submissions, submissions
from contrails.cluster.schedulers.base import scheduler_of
from contrails.cluster.schedulers.sites import Site, find_site, site_of
from contrails.cluster.status.fold_state import ALIVE, DONE, FoldState
from contrails.cluster.status.overview import overview
from contrails.errors import ContrailsError, RecipeError, RunError, TrainingError
from contrails.recipe.reading import parse
from contrails.recipe.recipe import Recipe, to_toml
from contrails.runs.config import RunConfig
from contrails.runs.folder import ALL, Run, new_run_path, open_run


@click.command()
@recipe_argument
@name_option
@click.option(
    "--folds", "num_folds", type=click.IntRange(1), help="Train all folds; the number of folds in the file list."
)
@click.option(
    "--fold", help="Train only these folds, such as 0 or 0,3; 'all' trains one model on every record not held out."
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of runs with different seeds; more than one are called NAME-s0, NAME-s1, ...",
)
@click.option(
    "--folds-per-job",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of folds that train side by side in one job, for small models that share a GPU or a node.",
)
@click.option(
    "--site",
    "site_name",
    shell_complete=complete_sites,
    help="Site to run on, see `contrails sites`; default: detected.",
)
@overrides_option
@click.option(
    "--after",
    metavar="RUN",
    shell_complete=complete_runs,
    help="Start the jobs after every unfinished job of RUN has succeeded.",
)
@click.option(
    "--then", metavar="COMMAND", help="Command to run after the last fold has finished, such as 'aggregate --tta d4'."
)
@click.option(
    "--wait",
    is_flag=True,
    help="Show the folds until they end, but not the command of --then; Ctrl-C ends only the display.",
)
@click.option("--dry-run", is_flag=True, help="Check everything and print the plan, but submit nothing.")
@json_option
def submit(
    path: Path | None,
    name: str | None,
    num_folds: int | None,
    fold: str | None,
    seeds: int,
    folds_per_job: int,
    site_name: str | None,
    overrides: tuple[str, ...],
    after: str | None,
    then: str | None,
    wait: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train the folds of RECIPE in the background.

    RECIPE defaults to jobs/default.toml. The code, the recipe and the identity of the data are frozen in the run
    folder. The same command again continues the folds that are neither finished nor alive.

    \b
    Example:
      contrails submit --folds 5
      contrails submit jobs/default.toml --name bright --folds 5 -o train.lr=3e-3 --wait
      contrails submit --folds 5 --site mycluster --then 'aggregate --data data/demo/test.h5'
    """
    from contrails.cluster.queue import own_code
    from contrails.cluster.queue.then import ask_for, forget_failure, start_if_due
    from contrails.cluster.submit.create import choose_folds, create_run, plan_run
    from contrails.cluster.submit.folds import submit_folds

    if num_folds is not None and fold is not None:
        raise click.UsageError("give --folds N for all folds, or --fold 0,3 for some, not both")
    chosen, recipe = read_recipe(path, overrides)
    site = find_site(site_name)
    folds = choose_folds(recipe, num_folds, fold)
    base = name or chosen.stem
    recipes = {base: recipe}
    if seeds > 1:
        recipes = {f"{base}-s{n}": recipe.model_copy(update={"seed": recipe.seed + n}) for n in range(seeds)}
    site = site if scheduler_of(site).CAPABILITIES.runs_here else _shared_by(site, folds_per_job)
    waits_for = _jobs_of(after, site) if after else {}
    follows = {each: _command(then, new_run_path(each)) for each in recipes if then is not None}
    if dry_run:
        _show_plan(recipes, site, folds, folds_per_job, as_json)
        return
    if ALL in folds:
        click.echo(
            "fold all trains on every record that is not held out: it has no validation score of its own", err=True
        )
    for run_name, seeded in recipes.items():
        plan_run(seeded, site, run_name)  # check every run before the first is created
    runs, served_here, outcomes = [], [], {}
    for run_name, seeded in recipes.items():
        run, config = create_run(seeded, site, run_name, folds)
        runs.append(run)
        if not own_code.is_imported(config):
            outcomes[run.name] = own_code.submit(
                run, config, folds, folds_per_job, site=site_name, after=after, then=then
            )
            continue
        served_here.append((run, config))
        if run_name in follows:
            ask_for(run, follows[run_name], folds)
        outcomes[run.name] = submit_folds(run, config, folds, folds_per_job, after=waits_for)
    if as_json:
        click.echo(json.dumps({run.name: {"path": str(run.path), "folds": outcomes[run.name]} for run in runs}))
    else:
        for run in runs:
            for key, outcome in outcomes[run.name].items():
                click.echo(f"{run.name} fold {key}: {outcome}")
        click.echo(f"next: `contrails status {runs[0].typed}`")
    for run, config in served_here:
        forget_failure(run)
        start_if_due(run, config, site_of(run))
    if wait:
        _follow(runs, folds)
        for run in runs:
            aggregated = f"finished; next: `contrails aggregate {run.typed}`"
            follows_now = f"finished; the command of --then follows: see `contrails status {run.typed}`"
            click.echo(f"{run.name}: {aggregated if then is None else follows_now}", err=True)


def _show_plan(recipes: dict[str, Recipe], site: Site, folds: list[str], folds_per_job: int, as_json: bool) -> None:
    """Print what would happen to each fold, and recipe and site as `run.toml` would hold them."""
    from contrails.cluster.submit.create import plan_run
    from contrails.cluster.submit.folds import plan_folds

    runs = [plan_run(recipe, site, run_name) for run_name, recipe in recipes.items()]
    plans = {run.name: plan_folds(run, config, folds, folds_per_job) for run, config in runs}
    if as_json:
        shown = {
            run.name: {"path": str(run.path), "folds": plans[run.name]}
            | config.model_dump(mode="json", include={"recipe", "site"})
            for run, config in runs
        }
        click.echo(json.dumps(shown))
        return
    for run, config in runs:
        click.echo(f"# {run.path}: {'continued' if run.toml.is_file() else 'a new run'}")
        for key, outcome in plans[run.name].items():
            click.echo(f"#   fold {key}: {outcome}")
        click.echo(to_toml(config.recipe, site=config.site))
        _show_jobs(run, config, folds, folds_per_job)


def _shared_by(site: Site, folds_per_job: int) -> Site:
    """Return the site with the cores of a job divided among its folds.

    Raises:
        RecipeError: several folds would share several nodes.
    """
    if site.num_nodes > 1 and folds_per_job > 1:
        raise RecipeError(
            f"--folds-per-job {folds_per_job}: expected 1 at the site {site.name}, where a fold has {site.num_nodes} "
            "nodes of its own (num_nodes); leave the option out"
        )
    return site if site.folds_at_a_time else site.model_copy(update={"folds_at_a_time": folds_per_job})


def _show_jobs(run: Run, config: RunConfig, folds: list[str], folds_per_job: int) -> None:
    """Print the scheduler's own script and command of each job."""
    from contrails.cluster.queue.requests import fold_request
    from contrails.cluster.queue.submission import with_archive
    from contrails.cluster.submit.folds import grouped

    site = parse(Site, config.site, str(run.toml))
    for group in grouped(folds, folds_per_job):
        request = fold_request(run, config, group)
        if script := scheduler_of(site).preview(run.job_folder(request.name), site, with_archive(request, site)):
            click.echo(f"\n{script}")


def _jobs_of(name: str, site: Site) -> dict[str, Path]:
    """Return the ids of the newest jobs of a run's unfinished folds, each with the folder of its submitit files."""
    run = open_run(name)
    if not all(scheduler_of(each).CAPABILITIES.has_queue for each in (site, site_of(run))):
        raise click.UsageError(
            f"--after {name}: expected both runs on a Slurm or PBS site; a local site has no queue to wait in"
        )
    dead = [state.fold for state in overview([run])[run] if state.state not in ALIVE | {DONE}]
    if dead:
        raise RunError(
            f"--after {name}: expected folds that are finished or alive, found others: {', '.join(dead)}; run "
            f"`contrails resume {run.typed}` first, or leave --after out"
        )
    newest = newest_submissions(submissions(run))
    open_jobs = [job for key, job in newest.items() if not run.fold(key).done.exists()]
    return {job.job_id: job.folder(run) for job in open_jobs if job.job_id is not None}


def _command(then: str, run: Path) -> list[str]:
    """Parse and check the command of --then; return its words, with the run as first argument."""
    try:
        name, *rest = shlex.split(then) or [""]
        if name != "aggregate":
            raise click.UsageError("expected 'aggregate', optionally followed by its options")
        context = aggregate.make_context(name, [str(run), *rest])
        check(context)
    except (ValueError, click.UsageError, click.exceptions.Exit, ContrailsError) as error:
        said = error.format_message().rstrip(".") if isinstance(error, click.UsageError) else str(error)
        said = (
            "expected a command that does something, found --help" if isinstance(error, click.exceptions.Exit) else said
        )
        raise click.UsageError(f"--then '{then}': {said}; see `contrails aggregate --help`") from error
    return [name, str(run), *options_of(context)]


def _follow(runs: list[Run], folds: list[str]) -> None:
    """Show the folds live until none of them is alive.

    Raises:
        TrainingError: some did not finish.
    """
    try:
        found = watch_folds(lambda: _states(runs, folds), stderr=True)
    except KeyboardInterrupt:
        click.echo(f"\nthe folds continue in the background; see `contrails status {runs[0].typed}`", err=True)
        sys.exit(130)
    unfinished = []
    for run, states in found.items():
        unfinished += [f"{run.name} fold {state.fold}" for state in states if state.state != DONE]
    if unfinished:
        for run, states in found.items():
            print_states(run, states)
        raise TrainingError(f"expected finished folds, found unfinished: {', '.join(unfinished)}; see above")


def _states(runs: list[Run], folds: list[str]) -> dict[Run, list[FoldState]]:
    states = {}
    for run, rows in overview(runs).items():
        states[run] = [row for row in rows if row.fold in folds or not row.fold]
    return states
