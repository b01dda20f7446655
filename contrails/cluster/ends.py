"""Why attempts ended, and what is done about it: causes, retry budgets, next steps.

`attempts/<nnn>/ended.json` is written by what outlives the attempt: the launcher, or else the teardown of its batch
script, or else the launcher of the same job's next start. It holds the cause, the last step that a snapshot covers, and
whether the job was handed over.
"""

import contextlib
import re
import shlex
from dataclasses import dataclass
from typing import cast, get_args

from contrails.cluster.scheduler import Cause
from contrails.cluster.sites import Retries
from contrails.config import read_toml
from contrails.errors import NodeError, RecipeError, Stopped, StorageError, TrainingError
from contrails.files import read_hint, to_json, write_atomic
from contrails.history import covered_step
from contrails.runs import Attempt, Fold, Run

NEXT_STEP: dict[Cause, str] = {
    "walltime": "a step may take longer than margin_s of the site profile; go on with `contrails resume {run}`",
    "preemption": "go on with `contrails resume {run}`; --site takes it to a partition that is not preempted",
    "node": "go on with `contrails resume {run}`; if it comes back, tell the cluster's support which node it was",
    "memory": "raise memory_gb of the site profile (on this machine lower folds_at_a_time), then go on with "
    "`contrails resume {run} --site {site}`; a smaller train.batch_size needs a new --name",
    "gpu_memory": "ask for a larger GPU in the site profile, then go on with `contrails resume {run} --site {site}`; a "
    "smaller train.batch_size or data.size needs a new --name",
    "dataset": "check the file with `contrails data verify {dataset}`, then go on with `contrails resume {run}`",
    "error": "mend it, then go on with `contrails resume {run}`, or after a change of the code with "
    "`contrails resume {run} --code current`; another recipe needs a new --name",
    "cancelled": "go on with `contrails resume {run}`",
    "lost": "go on with `contrails resume {run}`",
}
"""What to do about a cause; `next_step` fills in the run, its site and its dataset, each as a command line takes it."""


@dataclass(frozen=True)
class End:
    """The content of `ended.json`."""

    cause: Cause
    step: int
    handed_over: bool = False


def next_step(cause: Cause, run: Run) -> str:
    """Return what to do about a run of which a fold ended for this cause: its commands work when typed."""
    text = NEXT_STEP[cause]
    words = {"run": run.typed, "site": "SITE", "dataset": "DATASET"}
    if "{site}" in text or "{dataset}" in text:
        with contextlib.suppress(RecipeError, StorageError, KeyError):  # the command itself says what is wrong
            frozen = read_toml(run.toml, "a run")
            found = {"site": frozen["site"]["name"], "dataset": frozen["recipe"]["data"]["dataset"]}
            words |= {name: shlex.quote(value) for name, value in found.items()}
    return text.format_map(words)


def write_end(fold: Fold, attempt: Attempt, cause: Cause, *, handed_over: bool = False) -> None:
    """Say why an attempt ended, for good or, with `handed_over`, until the job starts again."""
    content = {"cause": cause, "step": covered_step(fold), "handed_over": handed_over}
    write_atomic(attempt.ended, to_json(content))


def read_end(attempt: Attempt) -> End | None:
    """Return why an attempt ended, or None where nobody has said so."""
    content = read_hint(attempt.ended)
    if content.get("cause") not in get_args(Cause):
        return None
    return End(content["cause"], content.get("step", 0), bool(content.get("handed_over")))


def cause_of_exit(code: int, reason: str) -> Cause:
    """Return the cause that an exit code stands for; `reason` is what the attempt said itself.

    Args:
        code: of a process as Python gives it, negative for a signal, or as a shell does, 128 and the signal.
        reason: may tell the GPU's memory from other failures of a training.
    """
    number = 128 - code if code < 0 else code
    causes: dict[int, Cause] = {128 + 9: "memory", 128 + 7: "dataset", NodeError.exit_code: "node"}
    if number in causes:
        return causes[number]
    if number == TrainingError.exit_code and re.search("fit in the GPU's memory", reason):
        return "gpu_memory"
    return "lost" if number in (0, Stopped.exit_code) or number > 128 else "error"


def retries_left(fold: Fold, cause: Cause, retries: Retries) -> int:
    """Return how often an attempt that ended for this cause may still be followed by another of itself.

    The budget is that of the cause, less the attempts at the end that had the same cause at the same snapshot.
    """
    step, used = covered_step(fold), 0
    for attempt in reversed(fold.attempts()):
        end = read_end(attempt)
        if end is None or (end.cause, end.step) != (cause, step):
            break
        used += 1
    budget = cast(int, getattr(retries, cause, 0))  # an error, or a job that somebody ended, is not tried again
    return budget + 1 - used
