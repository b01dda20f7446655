"""`contrails note`: add a note or a leaderboard score to a run."""

import math

import click

from contrails.cli.complete import complete_runs
from contrails.report.log import add_note
from contrails.runs.folder import open_run


@click.command()
@click.argument("run_name", metavar="RUN", shell_complete=complete_runs)
@click.argument("text", required=False, default="")
@click.option("--lb", type=float, help="Score on the competition's leaderboard.")
def note(run_name: str, text: str, lb: float | None) -> None:
    """Add a note or a leaderboard score to RUN.

    `contrails runs` shows both.

    \b
    Example:
      contrails note default --lb 0.602 "drops after tracing"
    """
    if not text and lb is None:
        raise click.UsageError('found nothing to note: give a text, such as "drops after tracing", or --lb SCORE')
    if lb is not None and not math.isfinite(lb):
        raise click.BadParameter(f"{lb}: expected a finite number", param_hint="--lb")
    run = open_run(run_name)
    add_note(run, text, lb)
    click.echo(f"{run.name}: noted")
