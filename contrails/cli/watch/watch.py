"""The live table of `status --watch` and `submit --wait`; plain lines if the output is not a terminal."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from contrails.cli.tables import Cell, Column, new_console, new_table
from contrails.cluster.status.fold_state import ALIVE, FoldState
from contrails.cluster.status.overview import has_queue
from contrails.files import last_json_line
from contrails.report.naming import title
from contrails.report.spark import sparkline
from contrails.runs.folder import Run
from contrails.runs.metrics import fold_metrics

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "lost": "red", "damaged": "red", "stopped": "yellow"}
_INTERVAL_S, _INTERVAL_OF_QUEUE_S = 1.0, 15.0
"""Seconds between updates; less often for a queue, since the scheduler serves other users too."""
_PLAIN_INTERVAL_S = 60.0
_COLUMNS = (
    Column("fold", right=True),
    Column("state"),
    Column("epoch", 3, right=True),
    Column("loss", 1, whole=True),
    Column("Dice", 2, whole=True),
    Column("best", right=True),
    Column("images/s", 6, right=True),
    Column("left", 1, right=True),
    Column("data", 7, right=True),
    Column("GPU", 8, right=True),
    Column("memory", 9, right=True),
    Column("lost", 5, right=True),
)
_ASK = Callable[[], Mapping[Run, Sequence[FoldState]]]


def watch_folds(ask: _ASK, *, stderr: bool = False) -> Mapping[Run, Sequence[FoldState]]:
    """Show folds repeatedly until none is queued or running; return their last states.

    Args:
        ask: returns the current states of the folds.
        stderr: print to standard error, when the output is read by a program.
    """
    if not (sys.stderr if stderr else sys.stdout).isatty():
        return _print_lines(ask, stderr=stderr)
    found, console = ask(), new_console(stderr=stderr)
    with Live(_tables(found), console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while _lives(found):
            time.sleep(_interval_s(found))
            found = ask()
            live.update(_tables(found), refresh=True)
    return found


def _interval_s(runs: Iterable[Run]) -> float:
    return _INTERVAL_OF_QUEUE_S if any(map(has_queue, runs)) else _INTERVAL_S


def _print_lines(ask: _ASK, *, stderr: bool) -> Mapping[Run, Sequence[FoldState]]:
    """Print a line for each fold whose state has changed, and for each active fold once per minute."""
    said: dict[tuple[str, str], tuple[str, float]] = {}
    while True:
        found = ask()
        for run, states in found.items():
            for state in states:
                before, when = said.get((run.name, state.fold), ("", 0.0))
                if state.state == before and (state.state not in ALIVE or time.monotonic() - when < _PLAIN_INTERVAL_S):
                    continue
                said[run.name, state.fold] = state.state, time.monotonic()
                click.echo(_line(run, state), err=stderr)
        if not _lives(found):
            return found
        time.sleep(_interval_s(found))


def _line(run: Run, state: FoldState) -> str:
    """Return the state, progress and reason of a fold in one line."""
    known = list(zip(_COLUMNS, _row(run, state), strict=True))[2:]
    words = [f"{column.heading} {text}" for column, text in known if text]
    reason = [state.reason] if state.reason else []
    return f"{time.strftime('%H:%M:%S')} {run.name} fold {state.fold}: {', '.join([state.state, *words, *reason])}"


def duration(seconds: float) -> str:
    """Return a duration as h:mm:ss or m:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _lives(found: Mapping[Run, Sequence[FoldState]]) -> bool:
    return any(state.state in ALIVE for states in found.values() for state in states)


def _tables(found: Mapping[Run, Sequence[FoldState]]) -> RenderableType:
    parts: list[RenderableType] = []
    for run, states in found.items():
        rows = [_row(run, state) for state in states]
        coloured: list[list[Cell]] = [
            [row[0], Text(row[1], COLOURS.get(state.state, "white")), *row[2:]]
            for row, state in zip(rows, states, strict=True)
        ]
        table = new_table(_COLUMNS, coloured, new_console().width)
        parts += [Text(title(run), "italic", no_wrap=True), table]
        parts += [Text(f"fold {state.fold}: {state.reason}") for state in states if state.reason]
    about = f"{time.strftime('%H:%M:%S')}, every {_interval_s(found):.0f} s; Ctrl-C ends this view, not the training"
    return Group(*parts, Text(about, style="dim"))


def _row(run: Run, state: FoldState) -> list[str]:
    """Return the cells of a fold; a cell is empty if its value is not known."""
    if not state.fold:  # a run whose files cannot be read has one row without a fold
        return ["", state.state, *[""] * (len(_COLUMNS) - 2)]
    fold = run.fold(state.fold)
    rows, attempts = fold_metrics(fold, newest=True), fold.attempts()
    told = last_json_line(attempts[-1].telemetry) if attempts and state.state in ALIVE else {}
    loss, dice = (_values(rows, *names) for names in (("train/loss_smooth", "train/loss"), ("val/dice",)))
    return [
        state.fold,
        state.state + (" (stale)" if state.stale else ""),
        f"{state.epoch}/{state.num_epochs}" if state.num_epochs else "",
        f"{sparkline(loss, 10)} {loss[-1]:.4f}" if loss else "",
        f"{sparkline(dice, 10)} {dice[-1]:.4f}" if dice else "",
        "" if state.best_dice is None else f"{state.best_dice:.4f}",
        _with(told, "images_per_s", "{:.1f}"),
        "" if state.eta_s is None else duration(state.eta_s),
        _with(told, "data_wait_share", "{:.1%}"),
        _with(told, "gpu_use", "{:.0%}"),
        _with({"GB": told["memory"] / 1e9} if "memory" in told else {}, "GB", "{:.1f} GB"),
        f"{state.usage.hours_lost:.2f} h" if state.usage.hours_lost else "",
    ]


def _values(rows: Sequence[Mapping[str, Any]], *names: str) -> list[float]:
    """Return the values of a metric, under the first of its `names` that the rows have."""
    name = next((name for name in names if any(name in row for row in rows)), names[0])
    return [float(row[name]) for row in rows if isinstance(row.get(name), float | int)]


def _with(told: Mapping[str, Any], name: str, form: str) -> str:
    value = told.get(name)
    return "" if value is None else form.format(value)
