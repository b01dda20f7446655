"""`contrails resume`: go on with whatever of a run is not finished."""

import click

from contrails.cli.complete import complete_runs, complete_sites
from contrails.cli.options import json_option, print_outcomes
from contrails.runs.folder import open_run


@click.command()
@click.argument("run_name", metavar="RUN", shell_complete=complete_runs)
@click.option(
    "--site",
    "site_name",
    shell_complete=complete_sites,
    help="Go on there; default: where the run was. See `contrails sites`.",
)
@click.option(
    "--code",
    type=click.Choice(["frozen", "current"]),
    default="frozen",
    show_default=True,
    help="The run's own copy of the code, or the code of today in its place.",
)
@json_option
def resume(run_name: str, site_name: str | None, code: str, as_json: bool) -> None:
    """Go on with the folds of RUN that nobody trains.

    Each that is neither finished nor alive goes on from its last snapshot; so does what was to follow them. Recipe,
    data and code are the run's own, wherever it goes on. Another kind of machine, other libraries or `--code current`
    give other bits: `contrails status` then says `exact: no`, and why.

    \b
    Example:
      contrails resume default
      contrails resume default --site local
    """
    from contrails.cluster.queue import own_code
    from contrails.cluster.queue.then import forget_failure, start_if_due
    from contrails.cluster.schedulers.sites import find_site, site_of
    from contrails.cluster.submit.create import move, refreeze
    from contrails.cluster.submit.folds import submit_folds

    run = open_run(run_name)
    config = run.read_config()
    if code == "frozen" and not own_code.is_imported(config):
        options = ["--site", site_name] if site_name is not None else []
        own_code.become(run, config, ["resume", str(run.path), *options, *(["--json"] if as_json else [])])
    site = None if site_name is None else find_site(site_name)
    if code == "current":
        config = refreeze(run, config)
    if site is not None:
        config = move(run, config, site)
    folds = [fold.key for fold in run.folds()] or [str(number) for number in range(config.data.num_folds)]
    outcomes = submit_folds(run, config, folds)
    print_outcomes(run, outcomes, as_json=as_json)
    forget_failure(run)
    start_if_due(run, config, site_of(run))
