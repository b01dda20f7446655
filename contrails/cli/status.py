"""`contrails status`: where the folds of a run stand, from their files alone."""

import json
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from contrails.cli.options import json_option
from contrails.cluster.states import FoldState, fold_state
from contrails.runs import Run, all_runs, open_run

_COLOURS = {"done": "green", "running": "cyan", "failed": "red", "lost": "red", "damaged": "red", "stopped": "yellow"}


@click.command()
@click.argument("run_name", metavar="[RUN]", required=False)
@json_option
def status(run_name: str | None, as_json: bool) -> None:
    """Show the folds of RUN, or of every run.

    \b
    Example:
      contrails status default
    """
    runs = [open_run(run_name)] if run_name else all_runs()
    found = {run: [fold_state(fold) for fold in run.folds()] for run in runs}
    if as_json:
        click.echo(json.dumps({run.name: [asdict(state) for state in states] for run, states in found.items()}))
        return
    if not found:
        click.echo("no runs yet; start one with `contrails submit --folds 5`")
    for run, states in found.items():
        print_states(run, states)


def print_states(run: Run, states: list[FoldState]) -> None:
    """Print one run as a table, and the reason of every fold that needs a hand."""
    table = Table(title=run.name, title_justify="left")
    for heading in ("fold", "state", "attempt", "step", "epoch", "best Dice", "time left", "exact"):
        table.add_column(heading, justify="left" if heading == "state" else "right")
    for state in states:
        colour = _COLOURS.get(state.state, "white")
        table.add_row(
            state.fold,
            f"[{colour}]{state.state}[/]",
            str(state.attempt or ""),
            _of(state.step, state.num_steps),
            _of(state.epoch, state.num_epochs),
            "" if state.best_dice is None else f"{state.best_dice:.4f}",
            "" if state.eta_s is None else duration(state.eta_s),
            "no" if state.differences else "yes",
        )
    console = Console()
    console.print(table)
    for state in states:
        if state.reason:
            console.print(f"fold {state.fold}: {state.reason}", markup=False, soft_wrap=True)
        for difference in state.differences:
            console.print(f"fold {state.fold}: not exact, {difference}", markup=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Return a time as 1:02:03 or 2:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _of(part: int, whole: int | None) -> str:
    return "" if whole is None else f"{part}/{whole}"
