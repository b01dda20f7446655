"""`contrails resume`: continue the unfinished folds of a run."""

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
    help="Site to run on, see `contrails sites`; default: the site of the run.",
)
@click.option(
    "--code",
    type=click.Choice(["frozen", "current"]),
    default="frozen",
    show_default=True,
    help="Use the run's copy of the code, or replace it with the installed code.",
)
@json_option
def resume(run_name: str, site_name: str | None, code: str, as_json: bool) -> None:
    """Continue the unfinished folds of RUN.

    Each fold that is neither finished nor alive continues from its last snapshot. The command of --then is started
    again if it failed. The recipe, the data and the code stay those of the run, on any site. On another kind of
    machine, with other libraries or with `--code current`, the results are not byte-identical: `contrails status` then
    shows `exact: no` and the reason.

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
