"""A suggestion of walltime and memory for the next submission, from what a run's attempts have measured."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from contrails.cluster.status.fold_state import FoldState

_SPARE_TIME = 1.2
_SPARE_MEMORY = 1.25
_STEP_MIN = 5
_STEP_GB = 0.5


@dataclass(frozen=True)
class Suggestion:
    """Keys of a site profile for a job of one fold, with the reason; None where nothing was measured."""

    walltime_min: int | None
    memory_gb: float | None
    reason: str


def suggest(states: Sequence[FoldState], margin_s: int, num_ranks: int = 1) -> Suggestion:
    """Return a walltime in which each fold ends in one job, and the memory that it needs.

    The walltime is that of the longest fold without lost hours, plus a fifth and the margin; a fold that still trains
    is extrapolated at its pace. The memory is the largest peak of a process, times the processes per fold, plus a
    quarter.

    Args:
        states: the folds of a run.
        margin_s: seconds that a job keeps for its hand-over.
        num_ranks: processes per fold, on each of its nodes.
    """
    minutes = [60 * hours for state in states if (hours := _whole_hours(state)) is not None]
    memories = [state.usage.memory_gb for state in states if state.usage.memory_gb is not None]
    walltime = _up(_SPARE_TIME * max(minutes) + margin_s / 60, _STEP_MIN) if minutes else None
    memory = _up(_SPARE_MEMORY * num_ranks * max(memories), _STEP_GB) if memories else None
    said = [f"the longest fold takes {max(minutes):.1f} min"] if minutes else []
    said += [f"a process used at most {max(memories):.2f} GB"] if memories else []
    return Suggestion(
        None if walltime is None else int(walltime), memory, ", ".join(said) or "no fold has made a step yet"
    )


def _whole_hours(state: FoldState) -> float | None:
    """Return how many hours a fold takes without interruptions; None if it is unknown."""
    useful = state.usage.hours - state.usage.hours_lost
    if not state.step or not state.num_steps or useful <= 0:
        return None
    return useful if state.state == "done" else useful * state.num_steps / state.step


def _up(value: float, step: float) -> float:
    return math.ceil(value / step) * step
