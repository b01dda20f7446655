"""Sparklines: a series of numbers as a few characters."""

import math
from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """Return the last value of each of `width` intervals as a bar between the smallest and the largest of them.

    >>> sparkline([0.0, 0.5, 1.0])
    '▁▅█'
    """
    if len(values) > width:
        values = [values[(index + 1) * len(values) // width - 1] for index in range(width)]
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    low, span = min(finite), (max(finite) - min(finite)) or 1.0
    return "".join(
        _BARS[math.floor((value - low) / span * (len(_BARS) - 1) + 0.5)] if math.isfinite(value) else " "
        for value in values
    )
