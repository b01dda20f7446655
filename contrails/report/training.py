"""The progress of training: a table of folds, curves of all folds, and a time line of all attempts."""

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from contrails.cluster.status.fold_state import FoldState
from contrails.cluster.status.usage import Span, spans
from contrails.report.html import Cell, number, parts, section, table
from contrails.report.svg import Axis, Bar, Line, chart, time_line
from contrails.runs.folder import Run
from contrails.runs.metrics import fold_metrics

_DICE = ("val/dice",), Axis("at each epoch's own best threshold")
_CURVES: tuple[tuple[str, tuple[str, ...], Axis], ...] = (
    ("Training loss", ("train/loss_smooth", "train/loss"), Axis("loss", log=True)),
    ("Validation loss", ("val/loss",), Axis("loss", log=True)),
    ("Best threshold", ("val/threshold",), Axis("probability", (0, 1))),
    ("Learning rate", ("train/lr",), Axis("learning rate")),
    ("Gradient norm", ("train/grad_norm",), Axis("before clipping", log=True)),
)
"""Each chart, the names of its metric, of which the first that the run has is drawn, and its axis."""
_CHARTED = {"step", "epoch", *_DICE[0], *(name for _, names, _ in _CURVES for name in names)}


def folds_section(states: Sequence[FoldState], dice: str) -> Markup:
    """Return the table of folds with progress, result and cost; `dice` is the name of the Dice score."""
    headings = (
        "fold",
        "state",
        "epoch",
        "step",
        f"best {dice}",
        "attempts",
        "hours",
        "lost",
        "waiting for data",
        "hours queued",
    )
    rows = [
        (
            Cell(state.fold),
            Cell(state.state + (" (stale)" if state.stale else ""), style=f"state-{state.state}"),
            f"{state.epoch}/{state.num_epochs or '?'}",
            f"{state.step}/{state.num_steps or '?'}",
            number(state.best_dice),
            str(state.attempt or ""),
            number(state.usage.hours, 2),
            number(state.usage.hours_lost, 2),
            _share(state.usage.hours_waiting, state.usage.hours),
            number(state.usage.hours_queued, 2),
        )
        for state in states
    ]
    reasons = []
    for state in states:
        texts = [state.reason] if state.reason else []
        texts += [f"not exact, {one}" for one in state.differences]
        reasons += [parts.text(f"fold {state.fold}: {text}", "quiet") for text in texts]
    return section("folds", "Folds", table("folds", headings, rows), *reasons)


def curves_section(run: Run, dice: str) -> Markup:
    """Return charts of the metrics of all folds by epoch; `dice` is the name of the Dice score."""
    histories = {fold.key: fold_metrics(fold) for fold in run.folds()}
    if not any(histories.values()):
        return section("curves", "Training", parts.text("no snapshot covers any metrics yet", "none"))
    known = {name for rows in histories.values() for row in rows for name in row}
    others = tuple((name, (name,), Axis(name)) for name in sorted(known - _CHARTED))
    charts = [
        parts.figure(title, *_curve(title, names, axis, histories))
        for title, names, axis in ((f"Validation {dice}", *_DICE), *_CURVES, *others)
        if known & set(names)
    ]
    names = parts.legend([(f"fold {key}", style(index)) for index, key in enumerate(histories)])
    return section("curves", "Training", names, parts.charts(charts, ""))


def attempts_section(run: Run, states: Sequence[FoldState]) -> Markup:
    """Return a time line of all attempts, and a table of their hours."""
    found = {state.fold: _judged(spans(run.fold(state.fold)), state) for state in states}
    every = [span for of_fold in found.values() for span in of_fold]
    if not every:
        return section("attempts", "Attempts", parts.text("no attempt has begun yet", "none"))
    first = min(span.started if span.queued is None else span.queued for span in every)
    bars = [bar for row, of_fold in enumerate(found.values()) for span in of_fold for bar in _bars(row, span)]
    words = f"Every attempt of every fold, in hours since {_utc(first)}"
    drawn = time_line(words, [f"fold {key}" for key in found], bars, first)
    rows = [
        (
            Cell(f"fold {key}, {span.attempt}"),
            _utc(span.started),
            number(span.hours, 2),
            Cell(span.status, style=f"state-{span.status}"),
            span.cause or "",
            number(span.hours_lost, 2),
            number(span.memory_gb, 2),
        )
        for key, of_fold in found.items()
        for span in of_fold
    ]
    headings = ("attempt", "began (UTC)", "hours", "ended", "cause", "lost", "memory, GB")
    shown = parts.attempts(words, drawn, _KEYS, len(every), table("attempts", headings, rows))
    return section("attempts", "Attempts", shown)


def style(index: int) -> str:
    """Return the colour class of the n-th fold."""
    return f"c{index % 8}"


_KEYS = {
    "queued": "queued",
    "running": "running",
    "done": "done",
    "stopped": "stopped with its position saved (walltime, preemption, signal)",
    "failed": "failed or lost; the steps of the paler part had to be trained again",
}


def _curve(
    title: str, names: Sequence[str], axis: Axis, histories: dict[str, list[dict[str, Any]]]
) -> tuple[Markup, str]:
    lines = []
    for index, (key, rows) in enumerate(histories.items()):
        name = next((name for name in names if any(name in row for row in rows)), None)
        points = [(row["epoch"], _float(row[name])) for row in rows if name in row and "epoch" in row]
        lines.append(Line(f"fold {key}", points, style(index)))
    axis = replace(axis, log=axis.log and not any(point[1] <= 0 for line in lines for point in line.points if point))
    ends = [f"fold {line.name.split()[-1]} {_last(line)}" for line in lines if line.points]
    return chart(f"{title} of each fold by epoch", lines, Axis("epoch"), axis), f"last: {', '.join(ends) or 'none'}"


def _share(part: float, whole: float) -> Cell:
    return Cell(f"{100 * part / whole:.1f}%", part / whole) if whole else Cell("", "")


def _judged(found: list[Span], state: FoldState) -> list[Span]:
    """Return the attempts; the last one is marked as lost if it could not record its own end."""
    if found and found[-1].status in {"starting", "running"} and state.state not in {"starting", "running"}:
        found[-1] = replace(found[-1], status="lost")
    return found


def _last(line: Line) -> str:
    values = [point[1] for point in line.points if point is not None and math.isfinite(point[1])]
    return f"{values[-1]:.4g}" if values else "–"


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _bars(row: int, span: Span) -> list[Bar]:
    name = f"attempt {span.attempt}"
    bars = []
    if span.queued is not None and span.started - span.queued > 1:
        waited = (span.started - span.queued) / 3600
        bars.append(Bar(row, span.queued, span.started, "queued", f"{name}: queued for {waited:.2f} h"))
    cause = f" ({span.cause})" if span.cause else ""
    text = f"{name}: {span.status}{cause}, {span.hours:.2f} h from {_utc(span.started)}"
    bars.append(Bar(row, span.started, span.ended, span.status, text))
    if span.hours_lost:
        lost = min(span.hours_lost, span.hours)
        again = f"{name}: its last {lost:.2f} h had to be trained again"
        bars.append(Bar(row, span.ended - 3600 * lost, span.ended, "again", again))
    return bars


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
