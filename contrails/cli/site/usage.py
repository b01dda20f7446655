"""`contrails usage`: show where the hours went, and suggest what to request next time."""

import json
from collections.abc import Mapping
from dataclasses import asdict

import click

from contrails.cli.complete import complete_runs
from contrails.cli.options import json_option
from contrails.cli.tables import Column, print_table
from contrails.cluster.queue.journal import submissions
from contrails.cluster.schedulers.sites import site_of
from contrails.cluster.status.overview import overview
from contrails.cluster.status.starts import START_PHASES, start_of
from contrails.cluster.status.suggest import Suggestion, suggest
from contrails.cluster.status.usage import UNUSED, Usage
from contrails.errors import RecipeError
from contrails.report.log import read_log
from contrails.runs.folder import Run, all_runs, open_run

_COLUMNS = (
    Column("GPU-hours", 5, right=True),
    Column("hours", right=True),
    Column("lost", 1, right=True),
    Column("waiting for data", 4, right=True),
    Column("queued", 3, right=True),
    Column("efficiency", 2, right=True),
    Column("memory, GB", 2, right=True),
)


@click.command()
@click.argument("run_name", metavar="[RUN]", shell_complete=complete_runs, required=False)
@json_option
def usage(run_name: str | None, as_json: bool) -> None:
    """Show the hours used by RUN per fold, or by all runs.

    Shows hours used, lost to interruptions, spent waiting for data, and queued; without RUN, per run and per user.
    Efficiency is the fraction of the hours neither lost nor spent waiting for data. With RUN, it also suggests the
    walltime and memory of the next submission, from the measured values. The second table shows the seconds that a
    start takes before its first step: in the queue, in the launcher, to unpack the environment, to import, to stage
    the dataset, to open the rest, and for the first step itself.

    \b
    Example:
      contrails usage
      contrails usage default
    """
    if run_name is not None:
        _show_run(open_run(run_name), as_json)
        return
    entries = read_log(all_runs())
    by_run = {entry.name: entry.usage for entry in entries}
    by_user: dict[str, Usage] = {}
    for entry in entries:
        user = entry.user or "unknown"
        by_user[user] = by_user.get(user, UNUSED) + entry.usage
    if as_json:
        runs, users = ({name: _plain(of) for name, of in part.items()} for part in (by_run, by_user))
        click.echo(json.dumps({"runs": runs, "users": users}))
        return
    if not entries:
        click.echo("no runs yet; start one with `contrails submit --folds 5`")
        return
    _print("run", by_run)
    _print("user", by_user)


def _show_run(run: Run, as_json: bool) -> None:
    states = overview([run])[run]
    by_fold = {state.fold: state.usage for state in states}
    try:
        site = site_of(run)
        found = suggest(states, site.margin_s, site.ranks_per_node(run.read_config().compute.num_ranks))
    except RecipeError as error:
        found = Suggestion(None, None, f"of an older version: {error}")
    jobs = submissions(run)
    starts = {state.fold: start_of(run.fold(state.fold), jobs) for state in states}
    if as_json:
        folds = {name: _plain(of) | ({"start_s": starts[name]} if starts[name] else {}) for name, of in by_fold.items()}
        click.echo(json.dumps({"folds": folds, "next": asdict(found)}))
        return
    _print("fold", by_fold)
    _print_starts(starts)
    asked = {"walltime_min": found.walltime_min, "memory_gb": found.memory_gb}
    lines = [f"{key} = {value:g}" for key, value in asked.items() if value is not None]
    click.echo(f"suggested for a job of one fold: {', '.join(lines) or 'nothing'} ({found.reason})")


def _print_starts(starts: Mapping[str, Mapping[str, float]]) -> None:
    """Print what the start of a fold consists of; nothing if no attempt wrote it."""
    rows: list[list[str] | None] = [
        [name, *(f"{start[phase]:.1f}" if phase in start else "" for phase in START_PHASES)]
        for name, start in starts.items()
        if start
    ]
    if rows:
        click.echo("seconds before the first step, median of the attempts:")
        columns = [Column(phase.replace("_", " "), 1, right=True) for phase in START_PHASES]
        print_table([Column("fold", whole=True), *columns], rows)


def _plain(of: Usage) -> dict[str, float | int | None]:
    return asdict(of) | {"efficiency": of.efficiency}


def _print(what: str, rows: Mapping[str, Usage]) -> None:
    cells: list[list[str] | None] = [[name, *_cells(of)] for name, of in rows.items()]
    if len(rows) > 1:
        cells += [None, ["all", *_cells(sum(rows.values(), UNUSED))]]
    print_table([Column(what, whole=True), *_COLUMNS], cells)


def _cells(of: Usage) -> list[str]:
    hours = [of.gpu_hours, of.hours, of.hours_lost, of.hours_waiting, of.hours_queued]
    efficiency = "" if of.efficiency is None else f"{of.efficiency:.1%}"
    return [*(f"{value:.2f}" for value in hours), efficiency, "" if of.memory_gb is None else f"{of.memory_gb:.2f}"]
