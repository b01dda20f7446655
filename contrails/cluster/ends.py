"""Why attempts ended, and what is done about it: causes, retry budgets, next steps.

`attempts/<nnn>/ended.json` is written by what outlives the attempt: the launcher, or else the teardown of its batch
script, or else the launcher of the same job's next start. It holds the cause, the last step that a snapshot covers, and
whether the job was handed over.
"""

import contextlib
import itertools
import re
import shlex
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast, get_args

from contrails.cluster.memory import Peak
from contrails.cluster.scheduler import Cause
from contrails.errors import DataError, NodeError, RecipeError, Stopped, StorageError, TrainingError
from contrails.files import read_hint, read_toml, to_json, write_atomic
from contrails.history import covered_step
from contrails.runs import Attempt, Fold, Run

if TYPE_CHECKING:
    from contrails.cluster.sites import Retries

NEXT_STEP: dict[Cause, str] = {
    "walltime": "a step may take longer than margin_s of the site profile; go on with `contrails resume {run}`",
    "preemption": "go on with `contrails resume {run}`; --site takes it to a partition that is not preempted",
    "node": "go on with `contrails resume {run}`; if it comes back, tell the cluster's support which node it was",
    "memory": "raise memory_gb of the site profile (on this machine lower folds_at_a_time), then go on with "
    "`contrails resume {run} --site {site}`; a smaller train.batch_size needs a new --name",
    "killed": "somebody killed it, or its node had no memory left; go on with `contrails resume {run}`",
    "gpu_memory": "ask for a larger GPU in the site profile, then go on with `contrails resume {run} --site {site}`; a "
    "smaller train.batch_size or data.size needs a new --name",
    "dataset": "check the file with `contrails data verify {dataset}`, then go on with `contrails resume {run}`",
    "data": "mend the data, then go on with `contrails resume {run}`",
    "error": "mend it, then go on with `contrails resume {run}`, or after a change of the code with "
    "`contrails resume {run} --code current`; another recipe needs a new --name",
    "cancelled": "go on with `contrails resume {run}`",
    "lost": "go on with `contrails resume {run}`",
    "refused": "the other jobs of the run submit it when they start or end; where there is none, wait until others of "
    "your jobs have ended, then go on with `contrails resume {run}`",
}
"""What to do about a cause; `next_step` fills in the run, its site and its dataset, each as a command line takes it."""

FINAL: tuple[Cause, ...] = ("data", "error", "cancelled")
"""Causes that another attempt would meet again: there is none by itself."""

_TOO_SHORT = (
    "the start took all of the job's time: raise walltime_min of the site profile, then go on with "
    "`contrails resume {run} --site {site}`"
)
_REFUSED = "change the site profile, then go on with `contrails resume {run} --site {site}`"
_STUCK = "`contrails cancel {run}`, change the site profile, then go on with `contrails resume {run} --site {site}`"


@dataclass(frozen=True)
class End:
    """The content of `ended.json`; `lasted_s` is how long its job had run by then, where that is known."""

    cause: Cause
    step: int
    handed_over: bool = False
    lasted_s: float | None = None


def next_step(
    cause: Cause, run: Run, *, never_ran: bool = False, stepless: bool = False, lasted_s: float | None = None
) -> str:
    """Return what to do about a run of which a fold ended for this cause: its commands work when typed.

    Args:
        cause: why it ended.
        run: whose fold it is.
        never_ran: whether the job was refused before it had a node.
        stepless: whether the job's last start made no step of the training.
        lasted_s: how long that start had lasted, None where nobody knows.
    """
    if never_ran and cause == "error":
        return _filled_in(_REFUSED, run)
    if stepless and cause == "walltime":
        within = "" if lasted_s is None else f" within {lasted_s:.0f} s"
        return f"no step was made{within}, {_filled_in(_TOO_SHORT, run)}"
    return _filled_in(NEXT_STEP[cause], run)


def unstick(run: Run) -> str:
    """Return what to do about a job that waits and asks for what it can never get."""
    return _filled_in(_STUCK, run)


def _filled_in(text: str, run: Run) -> str:
    words = {"run": run.typed, "site": "SITE", "dataset": "DATASET"}
    if "{site}" in text or "{dataset}" in text:
        with contextlib.suppress(RecipeError, StorageError, KeyError):  # the command itself says what is wrong
            frozen = read_toml(run.toml, "a run")
            found = {"site": frozen["site"]["name"], "dataset": frozen["recipe"]["data"]["dataset"]}
            words |= {name: shlex.quote(value) for name, value in found.items()}
    return text.format_map(words)


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


def cause_of_exit(code: int, reason: str, peak: Peak | None = None) -> Cause:
    """Return the cause that an exit code stands for; `reason` is what the attempt said itself.

    Args:
        code: of a process as Python gives it, negative for a signal, or as a shell does, 128 and the signal.
        reason: may tell the GPU's memory from other failures of a training.
        peak: the memory that was used, where it was measured.
    """
    number = 128 - code if code < 0 else code
    if number == 128 + signal.SIGKILL and peak is not None and peak.is_far:
        return "killed"
    causes: dict[int, Cause] = {
        128 + signal.SIGKILL: "memory",
        128 + signal.SIGBUS: "dataset",
        NodeError.exit_code: "node",
        DataError.exit_code: "data",
    }
    if number in causes:
        return causes[number]
    if number == TrainingError.exit_code and re.search("fit in the GPU's memory", reason):
        return "gpu_memory"
    return "lost" if number in (0, Stopped.exit_code) or number > 128 else "error"


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
