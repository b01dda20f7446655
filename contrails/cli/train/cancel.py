"""`contrails cancel`: stop folds until they are submitted or resumed again."""

import json

import click

from contrails.cli.complete import complete_runs
from contrails.cli.options import json_option
from contrails.errors import RunError
from contrails.runs.folder import open_run


@click.command()
@click.argument("run_name", metavar="RUN", shell_complete=complete_runs)
@click.option("--fold", help="Folds to cancel, such as 0 or 0,3; default: all.")
@json_option
def cancel(run_name: str, fold: str | None, as_json: bool) -> None:
    """Cancel the unfinished folds of RUN.

    Each fold writes a snapshot and ends. A mark in the fold's folder keeps requeued jobs from training it again.
    `contrails submit` and `contrails resume` remove the mark and continue the fold.

    \b
    Example:
      contrails cancel default --fold 0,3
    """
    from contrails.cluster.submit.cancel import cancel_folds

    run = open_run(run_name)
    folds = [run.fold(key.strip()) for key in fold.split(",")] if fold else run.folds()
    missing = [each.key for each in folds if not each.path.is_dir()]
    if missing:
        raise RunError(f"{run.name} has no fold {', '.join(missing)}; look with `contrails status {run.typed}`")
    outcome = cancel_folds(run, folds)
    if as_json:
        click.echo(json.dumps(outcome))
        return
    for key, what in outcome.items():
        click.echo(f"{run.name} fold {key}: {what}")
