"""The table of causes for which an attempt can end: exit code, retries, and what the user does next.

The launcher, the teardown of a batch script, `contrails status` and the table in jobs/sites/README.md all use it.
"""

import contextlib
import shlex
import signal
from dataclasses import dataclass
from typing import Literal

from contrails.cluster.memory import Peak
from contrails.errors import DataError, GpuMemoryError, NodeError, RankError, RecipeError, Stopped, StorageError
from contrails.files import read_toml
from contrails.runs.folder import Run

Cause = Literal[
    "walltime",
    "preemption",
    "node",
    "memory",
    "killed",
    "gpu_memory",
    "dataset",
    "data",
    "error",
    "cancelled",
    "lost",
    "refused",
]
"""Why an attempt or a job ended without finishing its fold."""

_KILLED = 128 + signal.SIGKILL
_SITE = "then go on with `contrails resume {run} --site {site}`"
_RESUME = "go on with `contrails resume {run}`"


@dataclass(frozen=True)
class Outcome:
    """One row of the table."""

    seen: str
    """How the cause is recognised; text of jobs/sites/README.md."""
    action: str
    """What happens automatically; text of jobs/sites/README.md."""
    next_step: str
    """What the user does when there are no automatic retries left; `next_step` fills in run, site and dataset."""
    exit_code: int | None = None
    """Exit code of the fold's process for this cause, if it has one; 128 + N for signal N."""
    is_final: bool = False
    """Whether another attempt would fail in the same way, so that there are no automatic retries; otherwise
    `[retries]` of the site profile gives their number."""


OUTCOMES: dict[Cause, Outcome] = {
    "walltime": Outcome(
        seen="the job's own clock, or the scheduler's signal near the end of its time",
        action="snapshot, then back into the queue",
        next_step=f"a step may take longer than margin_s of the site profile; {_RESUME}",
    ),
    "preemption": Outcome(
        seen="the scheduler's signal, or a job that it has started again",
        action="snapshot where there is time, then back into the queue",
        next_step=f"{_RESUME}; with --site it moves to a partition that is not preempted",
    ),
    "node": Outcome(
        seen="the node failed, or lacks the GPU that was asked for",
        action="a job on another node",
        next_step=f"{_RESUME}; if it happens again, tell the cluster's support which node it was",
        exit_code=NodeError.exit_code,
    ),
    "memory": Outcome(
        seen="a process or its whole job was killed while its memory was nearly full",
        action="a job with half as much memory again, at most what a node has",
        next_step=f"raise memory_gb of the site profile (on this machine lower folds_at_a_time), {_SITE}; "
        "a smaller train.batch_size needs a new --name",
        exit_code=_KILLED,
    ),
    "killed": Outcome(
        seen="the same, with less than half of its memory in use",
        action="the same job again",
        next_step=f"the user, an administrator or a full node killed it; {_RESUME}",
    ),
    "gpu_memory": Outcome(
        seen="CUDA has no memory left",
        action="the same job again",
        next_step=f"ask for a larger GPU in the site profile, {_SITE}; "
        "a smaller train.batch_size or data.size needs a new --name",
        exit_code=GpuMemoryError.exit_code,
    ),
    "dataset": Outcome(
        seen="the dataset vanished while it was mapped, or its disk failed (SIGBUS)",
        action="the same job again",
        next_step=f"check the file with `contrails data verify {{dataset}}`, then {_RESUME}",
        exit_code=128 + signal.SIGBUS,
    ),
    "data": Outcome(
        seen="a data file that is missing, damaged or changed",
        action="nothing: `contrails status` names file and record",
        next_step=f"repair the data, then {_RESUME}",
        exit_code=DataError.exit_code,
        is_final=True,
    ),
    "error": Outcome(
        seen="a traceback, or a mistake in the recipe",
        action="nothing: `contrails status` says the error and the next step",
        next_step=f"fix it, then {_RESUME}, or after a change of the code with "
        "`contrails resume {run} --code current`; another recipe needs a new --name",
        is_final=True,
    ),
    "cancelled": Outcome(
        seen="the user has cancelled it, by contrails or by the scheduler's own command",
        action="nothing",
        next_step=_RESUME,
        is_final=True,
    ),
    "lost": Outcome(
        seen="nothing recorded the cause, or a rank of the fold has ended on another node",
        action="the same job again, if its batch script or the scheduler can still restart it",
        next_step=_RESUME,
        exit_code=RankError.exit_code,
    ),
    "refused": Outcome(
        seen="the scheduler refuses the next job because of a limit of the site",
        action="submitted again until the job ends; after that, other jobs of the run submit it",
        next_step="other jobs of the run submit it when they start or end; if there are none, wait until others "
        f"of your jobs have ended, then {_RESUME}",
    ),
}

_TOO_SHORT = f"the start took all of the job's time: raise walltime_min of the site profile, {_SITE}"
_REFUSED = f"change the site profile, {_SITE}"
_STUCK = f"`contrails cancel {{run}}`, change the site profile, {_SITE}"


def cause_of_exit(code: int, peak: Peak | None = None) -> Cause:
    """Return the cause that an exit code means.

    Args:
        code: exit code as Python gives it (negative for a signal) or as a shell does (128 + signal).
        peak: peak memory, if it was measured.
    """
    number = 128 - code if code < 0 else code
    if number == _KILLED and peak is not None and peak.is_far:
        return "killed"
    for cause, outcome in OUTCOMES.items():
        if outcome.exit_code == number:
            return cause
    return "lost" if number in (0, Stopped.exit_code) or number > 128 else "error"


def next_step(
    cause: Cause, run: Run, *, never_ran: bool = False, stepless: bool = False, lasted_s: float | None = None
) -> str:
    """Return what the user should do after a fold ended for this cause, with commands that work when typed.

    Args:
        cause: why it ended.
        run: the run of the fold.
        never_ran: whether the job was refused before it had a node.
        stepless: whether the job's last start made no training step.
        lasted_s: seconds that this start had lasted, None if unknown.
    """
    if never_ran and cause == "error":
        return _filled_in(_REFUSED, run)
    if stepless and cause == "walltime":
        within = "" if lasted_s is None else f" within {lasted_s:.0f} s"
        return f"no step was made{within}, {_filled_in(_TOO_SHORT, run)}"
    return _filled_in(OUTCOMES[cause].next_step, run)


def unstick(run: Run) -> str:
    """Return what the user should do about a waiting job that can never start."""
    return _filled_in(_STUCK, run)


def _filled_in(text: str, run: Run) -> str:
    words = {"run": run.typed, "site": "SITE", "dataset": "DATASET"}
    if "{site}" in text or "{dataset}" in text:
        with contextlib.suppress(RecipeError, StorageError, KeyError):  # the suggested command reports the error
            frozen = read_toml(run.toml, "a run")
            found = {"site": frozen["site"]["name"], "dataset": frozen["recipe"]["data"]["dataset"]}
            words |= {name: shlex.quote(value) for name, value in found.items()}
    return text.format_map(words)
