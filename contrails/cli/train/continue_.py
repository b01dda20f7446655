"""`contrails continue`: start a new run from the weights of another one."""

import click

from contrails.cli.complete import complete_runs, complete_sites
from contrails.cli.options import json_option, overrides_option, print_outcomes
from contrails.runs.folder import open_run

_FROM = {"best": "best", "last": "final", "swa": "swa", "ema": "ema"}


@click.command("continue")
@click.argument("run_name", metavar="RUN", shell_complete=complete_runs)
@click.option("--name", help="Name of the new run; default: RUN-continued.")
@click.option(
    "--site",
    "site_name",
    shell_complete=complete_sites,
    help="Site to run on, see `contrails sites`; default: detected.",
)
@click.option(
    "--from",
    "weights",
    type=click.Choice(list(_FROM)),
    default="best",
    show_default=True,
    help="Weights of RUN to start from.",
)
@click.option("--fold", help="Folds to train, such as 0 or 0,3; default: all folds that RUN has finished.")
@overrides_option
@json_option
def continue_(
    run_name: str,
    name: str | None,
    site_name: str | None,
    weights: str,
    fold: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Start a new run from the weights of RUN.

    The new run has the recipe of RUN, changed by -o. Its fold k starts from fold k of RUN. The file list must be the
    same. If shapes differ, the tensors that fit are loaded and the others are listed in the attempt's log.

    \b
    Example:
      contrails continue default -o train.epochs=10 -o train.lr=1e-4 -o data.size=384
    """
    from contrails.cluster.schedulers.sites import find_site
    from contrails.cluster.submit.create import choose_folds, create_run
    from contrails.cluster.submit.folds import submit_folds
    from contrails.recipe.recipe import override

    parent = open_run(run_name)
    lineage = (f'init.run="{parent.path}"', f"init.weights={_FROM[weights]}")
    recipe = override(parent.read_config().recipe, (*lineage, *overrides))
    chosen = choose_folds(recipe, None, fold) if fold is not None else []
    run, config = create_run(recipe, find_site(site_name), name or f"{parent.name}-continued", chosen)
    folds = chosen or list(config.lineage)
    outcomes = submit_folds(run, config, folds)
    print_outcomes(run, outcomes, as_json=as_json)
