"""`contrails status`: show the state of the folds of runs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click
from rich.text import Text

from contrails.cli.complete import complete_runs
from contrails.cli.options import json_option
from contrails.cli.tables import Cell, Column, new_console, print_table
from contrails.cli.watch.watch import COLOURS, duration, watch_folds
from contrails.cluster.queue.then import Following, following, left_to_do
from contrails.cluster.status.fold_state import FoldState
from contrails.cluster.status.overview import ask_schedulers, overview
from contrails.report.naming import title
from contrails.runs.folder import Run, all_runs, open_run

_COLUMNS = (
    Column("fold", right=True),
    Column("state"),
    Column("attempt", 4, right=True),
    Column("step", 1, right=True),
    Column("epoch", 6, right=True),
    Column("best Dice", right=True),
    Column("time left", 2, right=True),
    Column("node", 7),
    Column("hours", 3, right=True),
    Column("lost", 5, right=True),
    Column("exact", 1, right=True),
)
_FOLLOWING = "--then"
"""Key in the JSON output for the command given with `--then`; no run can have this name."""


@click.command()
@click.argument("run_name", metavar="[RUN]", shell_complete=complete_runs, required=False)
@click.option("--watch", is_flag=True, help="Show a live table with loss, Dice and rates until all folds end.")
@json_option
def status(run_name: str | None, watch: bool, as_json: bool) -> None:
    """Show the folds of RUN, or of every run.

    For each fold: its state, progress, hours used and hours lost; then the command given with --then. The scheduler
    is asked once for all folds. If it does not answer, the last known state is shown, marked as stale.

    \b
    Example:
      contrails status default
      contrails status --watch
    """

    runs = [open_run(run_name)] if run_name else all_runs()
    if watch and as_json:
        raise click.UsageError("--watch and --json: give one of them; to watch from a script, repeat --json")
    if watch:
        watch_folds(lambda: overview([open_run(run_name)] if run_name else all_runs()))
        said = ask_schedulers(runs)
        for run in runs:
            _print_following(run, following(run, said.get(run)))
    elif as_json:
        click.echo(json.dumps(_as_json(runs)))
    else:
        _print(runs)


def _as_json(runs: list[Run]) -> dict[str, Any]:
    """Return the folds of each run by its name, and under `--then` the commands that follow the runs."""
    said = ask_schedulers(runs)
    rows = {run.name: [asdict(state) for state in states] for run, states in overview(runs, said).items()}
    after = {run.name: asdict(row) for run in runs if (row := following(run, said.get(run))) is not None}
    return rows | ({_FOLLOWING: after} if after else {})


def _print(runs: list[Run]) -> None:
    if not runs:
        click.echo("no runs yet; start one with `contrails submit --folds 5`")
    said = ask_schedulers(runs)
    for run, states in overview(runs, said).items():
        print_states(run, states)
        _print_following(run, following(run, said.get(run)))
        if (left := left_to_do(run, said.get(run))) is not None:
            click.echo(f"every fold is finished; {left}")


def _print_following(run: Run, row: Following | None) -> None:
    """Print the state of the command given with `--then`, in one line."""
    if row is None:
        return
    done = {fold.key for fold in run.folds() if fold.done.exists()}
    missing = [key for key in row.folds if key not in done]
    about = [f"job {row.job_id}"] if row.job_id else []
    about += [f"for {len(missing)} of {len(row.folds)} folds"] if missing else []
    about += [row.reason] if row.reason and row.state in ("waiting", "queued", "running") else []
    state = f"{row.state} (stale)" if row.stale else row.state
    click.echo(f"then `{row.command}`: {', '.join([state, *about])}")


def print_states(run: Run, states: Sequence[FoldState]) -> None:
    """Print a run as a table, then the reason of each fold that needs attention."""
    print_table(_COLUMNS, [_cells(state) for state in states], title(run))
    console = new_console()
    for state in states:
        if state.reason:
            console.print(f"fold {state.fold}: {state.reason}", soft_wrap=True)
        for difference in state.differences:
            console.print(f"fold {state.fold}: not exact, {difference}", soft_wrap=True)


def _cells(state: FoldState) -> list[Cell]:
    return [
        state.fold,
        Text(f"{state.state}{' (stale)' if state.stale else ''}", COLOURS.get(state.state, "white")),
        str(state.attempt or ""),
        _of(state.step, state.num_steps),
        _of(state.epoch, state.num_epochs),
        "" if state.best_dice is None else f"{state.best_dice:.4f}",
        "" if state.eta_s is None else duration(state.eta_s),
        state.node or "",
        f"{state.usage.hours:.2f}",
        f"{state.usage.hours_lost:.2f}",
        "" if not state.attempt else "no" if state.differences else "yes",
    ]


def _of(part: int, whole: int | None) -> str:
    return "" if whole is None else f"{part}/{whole}"
