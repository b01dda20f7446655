"""What state a fold is in, judged by its own files first.

`done.json` is the truth; below it come the newest attempt's `state.json` and whether its process lives, then the
journal. Nothing here imports torch.
"""

from dataclasses import dataclass
from typing import Any

from contrails.cluster.exact import differences
from contrails.cluster.journal import last_submission
from contrails.errors import StorageError
from contrails.files import read_hint
from contrails.runs import Fold
from contrails.train.attempt import is_dead

DONE, DAMAGED = "done", "damaged"
ALIVE = {"waiting", "starting", "running"}


@dataclass(frozen=True)
class FoldState:
    """A row of `contrails status`.

    `state` is one of: not submitted, waiting, starting, running, stopped, failed, lost, damaged, done.
    """

    fold: str
    state: str
    attempt: int = 0
    step: int = 0
    num_steps: int | None = None
    epoch: int = 0
    num_epochs: int | None = None
    best_dice: float | None = None
    eta_s: float | None = None
    reason: str | None = None
    differences: tuple[str, ...] = ()
    """In what its attempts differ, so that the result is not exact (see `contrails.cluster.exact`)."""


def fold_state(fold: Fold) -> FoldState:
    """Return the state of a fold."""
    attempts = fold.attempts()
    state = read_hint(attempts[-1].state) if attempts else {}
    number = attempts[-1].number if attempts else 0
    known: dict[str, Any] = {
        key: state[key] for key in ("step", "num_steps", "epoch", "num_epochs", "best_dice") if key in state
    }
    known["differences"] = differences(fold)
    try:
        done = fold.read_done()
    except StorageError as error:
        return FoldState(fold.key, DAMAGED, number, reason=str(error), **known)
    if done is not None:
        known |= {key: done[key] for key in ("step", "epoch", "best_dice")}
        return FoldState(fold.key, DONE, done["attempt"], **known)
    name, reason = _judge(fold, state)
    left = known.get("num_steps", 0) - known.get("step", 0)
    pace = state.get("seconds_per_step")
    eta = left * pace if name in ALIVE and pace is not None else None
    return FoldState(fold.key, name, number, eta_s=eta, reason=reason, **known)


def _judge(fold: Fold, state: dict[str, Any]) -> tuple[str, str | None]:
    """Return the state of an unfinished fold and why, if there is a reason to tell."""
    attempts = fold.attempts()
    submission = last_submission(fold.run, fold.key)
    job = read_hint(attempts[-1].job) if attempts else {}
    if submission is not None and job.get("job_id") != submission["job_id"] and not is_dead(submission):
        return "waiting", None  # its job lives and has no attempt yet: it waits for a place
    status = state.get("status")
    if status in {"starting", "running"}:
        if is_dead(job):
            return "lost", "its process ended without a word (killed, or out of memory); submit the run again to go on"
        return str(status), None
    if status is not None:
        return str(status), state.get("reason")
    if attempts:
        return ("lost", "its process ended before it began") if is_dead(job) else ("starting", None)
    if submission is None:
        return "not submitted", None
    return "lost", f"its job ended before it began; see {fold.run.submitit}/{submission['job_id']}_0_log.err"
