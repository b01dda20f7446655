"""`ended.json`: why an attempt ended, and how many retries its cause has left.

`attempts/<nnn>/ended.json` is written by a process that outlives the attempt: the launcher; otherwise the teardown of
the batch script; otherwise the launcher of the job's next start. It holds the cause, the last step that a snapshot
covers, and whether the job handed over to its continuation.
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
    """The content of `ended.json`; `lasted_s` is how many seconds its job had run, if known."""

    cause: Cause
    step: int
    handed_over: bool = False
    lasted_s: float | None = None


def write_end(
    fold: Fold, attempt: Attempt, cause: Cause, *, handed_over: bool = False, lasted_s: float | None = None
) -> None:
    """Record why an attempt ended; with `handed_over`, the job continues the fold when it starts again."""
    content = {"cause": cause, "step": covered_step(fold), "handed_over": handed_over, "lasted_s": lasted_s}
    write_atomic(attempt.ended, to_json(content))


def read_end(attempt: Attempt) -> End | None:
    """Return why an attempt ended; None if that was not recorded."""
    content = read_hint(attempt.ended)
    if content.get("cause") not in get_args(Cause):
        return None
    handed_over = bool(content.get("handed_over"))
    return End(content["cause"], content.get("step", 0), handed_over, content.get("lasted_s"))


def retries_left(fold: Fold, cause: Cause, retries: "Retries") -> int:
    """Return how many more attempts may follow one that ended for this cause."""
    return budget(cause, retries) + 1 - num_ended(fold, cause)


def budget(cause: Cause, retries: "Retries") -> int:
    """Return how many ends in a row for this cause are retried; 0 for an error or a cancelled job."""
    return cast(int, getattr(retries, cause, 0))


def num_ended(fold: Fold, cause: Cause) -> int:
    """Return how many attempts in a row, up to the newest, have ended for this cause without a new snapshot."""
    step = covered_step(fold)
    ends = map(read_end, reversed(fold.attempts()))
    same = itertools.takewhile(lambda end: end is not None and (end.cause, end.step) == (cause, step), ends)
    return len(list(same))
