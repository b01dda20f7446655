"""The end of an attempt as its file says it, and how often it may be followed by another.

`attempts/<nnn>/ended.json` is written by what outlives the attempt: the launcher, or else the teardown of its batch
script, or else the launcher of the same job's next start. It holds the cause, the last step that a snapshot covers, and
whether the job was handed over.
"""

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, get_args

from contrails.cluster.outcomes import Cause
from contrails.files import read_hint, to_json, write_atomic
from contrails.runs.folder import Attempt, Fold
from contrails.runs.metrics import covered_step

if TYPE_CHECKING:
    from contrails.cluster.schedulers.sites import Retries


@dataclass(frozen=True)
class End:
    """The content of `ended.json`; `lasted_s` is how long its job had run by then, where that is known."""

    cause: Cause
    step: int
    handed_over: bool = False
    lasted_s: float | None = None


def write_end(
    fold: Fold, attempt: Attempt, cause: Cause, *, handed_over: bool = False, lasted_s: float | None = None
) -> None:
    """Say why an attempt ended, for good or, with `handed_over`, until the job starts again."""
    content = {"cause": cause, "step": covered_step(fold), "handed_over": handed_over, "lasted_s": lasted_s}
    write_atomic(attempt.ended, to_json(content))


def read_end(attempt: Attempt) -> End | None:
    """Return why an attempt ended, or None where nobody has said so."""
    content = read_hint(attempt.ended)
    if content.get("cause") not in get_args(Cause):
        return None
    handed_over = bool(content.get("handed_over"))
    return End(content["cause"], content.get("step", 0), handed_over, content.get("lasted_s"))


def retries_left(fold: Fold, cause: Cause, retries: "Retries") -> int:
    """Return how often an attempt that ended for this cause may still be followed by another of itself."""
    return budget(cause, retries) + 1 - num_ended(fold, cause)


def budget(cause: Cause, retries: "Retries") -> int:
    """Return how often in a row an end for this cause is tried again; an error and a cancelled job never are."""
    return cast(int, getattr(retries, cause, 0))


def num_ended(fold: Fold, cause: Cause) -> int:
    """Return how many attempts in a row, up to the last one, have ended for this cause without a new snapshot."""
    step = covered_step(fold)
    ends = map(read_end, reversed(fold.attempts()))
    same = itertools.takewhile(lambda end: end is not None and (end.cause, end.step) == (cause, step), ends)
    return len(list(same))
