"""Line charts and time lines as SVG, coloured by the page's style sheet, so that they follow its light and dark modes.

This module gets numbers, and the templates render the markup; it knows nothing of folds. The page's script reads the
attributes `data-*` to show the values under the pointer.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from markupsafe import Markup

from contrails.report.html import parts, render

_WIDTH, _HEIGHT = 440, 290
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 10, 42
_MOST_POINTS = 300
"""Largest number of points drawn per line: more points than pixels would only enlarge the file."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line of a chart; `style` is a class of the style sheet, `name` the text of the legend."""

    name: str
    points: Sequence[Point | None]
    style: str
    markers: bool = False


@dataclass(frozen=True)
class Axis:
    """An axis: its label, and its limits, by default those of the values."""

    label: str
    limits: tuple[float, float] | None = None
    log: bool = False


@dataclass(frozen=True)
class Bar:
    """A bar in a row of a time line, from `start` to `end` in seconds; `text` is shown under the pointer."""

    row: int
    start: float
    end: float
    style: str
    text: str


def chart(title: str, lines: Sequence[Line], x: Axis, y: Axis) -> Markup:
    """Return a chart of lines with axes; values that are not finite leave a gap."""
    drawn = [Line(line.name, list(_drawable(line.points, x, y)), line.style, line.markers) for line in lines]
    points = [point for line in drawn for point in line.points if point is not None]
    if not points:
        empty: Markup = parts.text("nothing to draw yet", "none")
        return empty
    x_scale, x_limits = _scale(x, [point[0] for point in points], _LEFT, _WIDTH - _RIGHT)
    y_scale, y_limits = _scale(y, [point[1] for point in points], _HEIGHT - _BOTTOM, _TOP)
    limits = zip(("x0", "x1", "y0", "y1"), (*x_limits, *y_limits), strict=True)
    data = {key: f"{value:g}" for key, value in limits}
    data |= {f"{name}log": "1" for name, axis in (("x", x), ("y", y)) if axis.log}
    return render(
        "chart.svg",
        title=title,
        width=_WIDTH,
        height=_HEIGHT,
        left=_LEFT,
        right=_WIDTH - _RIGHT,
        top=_TOP,
        bottom=_HEIGHT - _BOTTOM,
        area=f"{_LEFT} {_TOP} {_WIDTH - _RIGHT} {_HEIGHT - _BOTTOM}",
        data=data,
        x_label=x.label,
        y_label=y.label,
        x_ticks=[_Tick.of(tick, x_scale) for tick in (_log_ticks if x.log else _ticks)(*x_limits, 6)],
        y_ticks=[_Tick.of(tick, y_scale) for tick in (_log_ticks if y.log else _ticks)(*y_limits, 6)],
        lines=[_Drawn.of(line, x_scale, y_scale) for line in drawn],
    )


def time_line(title: str, rows: Sequence[str], bars: Sequence[Bar], hours_from: float) -> Markup:
    """Return rows of bars (at least one) over hours since `hours_from`, which is in seconds since the epoch."""
    width, left = 900, 60
    hours = max((max(bar.end for bar in bars) - hours_from) / 3600, 1e-3)
    scale = _linear(0, hours, left, width - 16)
    boxes = []
    for bar in bars:
        start, stop = (scale((moment - hours_from) / 3600) for moment in (bar.start, bar.end))
        size = {"x": f"{start:.1f}", "y": 28 * bar.row + 8, "width": f"{max(stop - start, 1.5):.1f}"}
        boxes.append(size | {"style": bar.style, "text": bar.text})
    return render(
        "time_line.svg",
        title=title,
        width=width,
        height=28 * len(rows) + 40,
        left=left,
        ticks=[_Tick.of(tick, scale) for tick in _ticks(0, hours, 8)],
        rows=rows,
        bars=boxes,
    )


@dataclass(frozen=True)
class _Tick:
    """A tick of an axis: its position, the position of its text, and the text."""

    at: str
    below: str
    text: str

    @classmethod
    def of(cls, value: float, scale: Callable[[float], float]) -> Self:
        return cls(f"{scale(value):.1f}", f"{scale(value) + 4:.1f}", _text(value))


@dataclass(frozen=True)
class _Drawn:
    """A line in pixels: the commands of its path, and its markers."""

    name: str
    style: str
    path: str
    marks: list[tuple[str, str]]

    @classmethod
    def of(cls, line: Line, x_scale: Callable[[float], float], y_scale: Callable[[float], float]) -> Self:
        commands, marks, pen_up = [], [], True
        for point in line.points:
            if point is not None:
                x, y = f"{x_scale(point[0]):.1f}", f"{y_scale(point[1]):.1f}"
                commands.append(f"{'M' if pen_up else 'L'}{x} {y}")
                marks += [(x, y)] if line.markers else []
            pen_up = point is None
        return cls(line.name, line.style, "".join(commands), marks)


def _drawable(points: Sequence[Point | None], x: Axis, y: Axis) -> Iterator[Point | None]:
    """Yield points for drawing, at most a few hundred: the lowest and highest of each interval; None for a gap."""
    size = 1 if len(points) <= _MOST_POINTS else math.ceil(2 * len(points) / _MOST_POINTS)
    for first in range(0, len(points), size):
        good = [point for point in points[first : first + size] if point is not None and _fits(point, x, y)]
        if good:
            yield from sorted({min(good, key=lambda p: p[1]), max(good, key=lambda p: p[1])})
        else:
            yield None


def _fits(point: Point, x: Axis, y: Axis) -> bool:
    return all(math.isfinite(at) and (at > 0 or not axis.log) for at, axis in zip(point, (x, y), strict=True))


def _scale(
    axis: Axis, values: Sequence[float], low: float, high: float
) -> tuple[Callable[[float], float], tuple[float, float]]:
    """Return the map from values to pixels, and the limits of the axis."""
    first, last = axis.limits or (min(values), max(values))
    if first == last:
        first, last = (first / 2, last * 2) if axis.log else (first - 0.5, last + 0.5)
    if axis.limits is None and not axis.log:
        margin = 0.04 * (last - first)
        first, last = first - (margin if first else 0), last + margin
    if axis.log:
        inner = _linear(math.log10(first), math.log10(last), low, high)
        return lambda value: inner(math.log10(value)), (first, last)
    return _linear(first, last, low, high), (first, last)


def _linear(first: float, last: float, low: float, high: float) -> Callable[[float], float]:
    return lambda value: low + (value - first) / (last - first) * (high - low)


def _ticks(first: float, last: float, most: int) -> Iterator[float]:
    """Yield round numbers at distances of 1, 2 or 5 times a power of ten."""
    raw = (last - first) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    for number in range(math.ceil(first / step - 1e-9), math.floor(last / step + 1e-9) + 1):
        yield number * step


def _log_ticks(first: float, last: float, most: int) -> Iterator[float]:
    decades = range(math.floor(math.log10(first)), math.ceil(math.log10(last)) + 1)
    factors = (1, 2, 5) if len(decades) <= most // 2 else (1,)
    found = [factor * 10.0**decade for decade in decades for factor in factors]
    inside = [tick for tick in found if first * (1 - 1e-9) <= tick <= last * (1 + 1e-9)]
    yield from inside if len(inside) > 1 else (first, last)


def _text(value: float) -> str:
    if value and not 1e-4 <= abs(value) < 1e5:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"
