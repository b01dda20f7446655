"""What a fold's attempts cost, from their files."""

from dataclasses import dataclass
from datetime import datetime

from contrails.cluster.ends import read_end
from contrails.files import read_hint
from contrails.history import covered_step
from contrails.runs import Attempt, Fold


@dataclass(frozen=True)
class Usage:
    """Hours of a fold's attempts, and those whose steps were lost among them."""

    hours: float = 0.0
    hours_lost: float = 0.0


UNUSED = Usage()


def usage_of(fold: Fold) -> Usage:
    """Return what the attempts of a fold have used; an attempt lasts until the last change of its state."""
    attempts = fold.attempts()
    hours = sum(_hours(attempt) for attempt in attempts)
    lost = sum(_hours_lost(fold, attempt, is_last=attempt == attempts[-1]) for attempt in attempts)
    return Usage(hours, lost)


def _hours(attempt: Attempt) -> float:
    started = read_hint(attempt.job).get("started")
    if started is None or not attempt.state.exists():
        return 0.0
    return max(0.0, attempt.state.stat().st_mtime - datetime.fromisoformat(started).timestamp()) / 3600


def _hours_lost(fold: Fold, attempt: Attempt, *, is_last: bool) -> float:
    """Return the time of the steps that no snapshot covered when the attempt ended."""
    state, end = read_hint(attempt.state), read_end(attempt)
    if end is None and (is_last or state.get("status") in {"stopped", "done"}):
        return 0.0
    steps = state.get("step", 0) - (end.step if end else covered_step(fold))
    return float(max(0, steps) * (state.get("seconds_per_step") or 0.0) / 3600)
