"""What state a fold is in, judged by its own files first.

`done.json` is the truth; below it come the newest attempt's files, then the journal, and what the scheduler says is a
hint: a job that it no longer knows is lost, never done or failed. Nothing here imports torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contrails.cluster.ends import read_end
from contrails.cluster.outcomes import OUTCOMES, Cause, next_step, unstick
from contrails.cluster.queue.journal import Submission, newest_asked, newest_submissions, submissions
from contrails.cluster.schedulers.base import Job
from contrails.cluster.status.exact import differences
from contrails.cluster.status.usage import UNUSED, Usage, usage_of
from contrails.errors import StorageError
from contrails.files import read_hint
from contrails.processes import Process, process_in
from contrails.runs.folder import Attempt, Fold, Run
from contrails.train.attempt import OVER, SILENCE_S, is_lost

DONE, DAMAGED = "done", "damaged"
ALIVE = {"waiting", "starting", "running", "suspended"}


@dataclass(frozen=True)
class FoldState:
    """A row of `contrails status`.

    `state` is one of: not submitted, waiting, starting, running, suspended, stopped, failed, cancelled, lost, damaged,
    done. It is `stale` where the scheduler was asked and did not answer.
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
    """In what its attempts differ, so that the result is not exact (see `contrails.cluster.status.exact`)."""
    cause: str | None = None
    job_id: str | None = None
    node: str | None = None
    stale: bool = False
    usage: Usage = UNUSED


def fold_state(fold: Fold, jobs: Mapping[str, Job] | None = None) -> FoldState:
    """Return the state of a fold.

    Args:
        fold: of any run.
        jobs: what the scheduler says, by the names of the jobs; None where there is none, or it was not asked.
    """
    attempts = fold.attempts()
    state = read_hint(attempts[-1].state) if attempts else {}
    number = attempts[-1].number if attempts else 0
    known: dict[str, Any] = {
        key: state[key] for key in ("step", "num_steps", "epoch", "num_epochs", "best_dice") if key in state
    }
    if attempts:
        owner = read_hint(attempts[-1].job)
        known |= {
            "node": owner.get("node") or owner.get("host"),  # as the scheduler calls it, where there is one
            "usage": usage_of(fold),
            "differences": differences(fold),
            # state.json lags behind by a moment
            "step": max([known.get("step", 0), *(snapshot.step for snapshot in fold.all_snapshots())]),
        }
    try:
        done = fold.read_done()
    except StorageError as error:
        return FoldState(fold.key, DAMAGED, number, reason=str(error), **known)
    if done is not None:
        known |= {key: done[key] for key in ("step", "epoch", "best_dice")}
        return FoldState(fold.key, DONE, done["attempt"], **known)
    asked = submissions(fold.run)
    submission = newest_submissions(asked).get(fold.key)
    row = FoldState(fold.key, "", number, job_id=submission.job_id if submission else None, **known)
    last = newest_asked(asked).get(fold.key)
    if last is not None and last.refusal is not None:
        row = _over(row, fold, f"its job was not taken: {last.refusal}", "refused")
    else:
        row = _judge(row, fold, attempts, state, submission, jobs)
    pace = state.get("seconds_per_step")
    eta = ((row.num_steps or 0) - row.step) * pace if row.state in ALIVE and pace is not None else None
    return replace(row, eta_s=eta)


def _judge(
    row: FoldState,
    fold: Fold,
    attempts: list[Attempt],
    state: dict[str, Any],
    submission: Submission | None,
    jobs: Mapping[str, Job] | None,
) -> FoldState:
    """Return the row of an unfinished fold with its state, and why if there is a reason to tell."""
    owner = read_hint(attempts[-1].job) if attempts else {}
    if submission is None or submission.process:
        return _judge_here(row, fold, owner, state, submission)
    if not submission.is_that_of(owner):
        state, attempts = {}, []  # the newest job has not got to an attempt
    end = read_end(attempts[-1]) if attempts else None
    status = state.get("status")
    job = jobs.get(submission.name) if jobs is not None else None
    if fold.cancelled.exists() and status not in {"starting", "running"}:  # whatever its job still does for other folds
        return _over(row, fold, state.get("reason") or f"its job {row.job_id} is cancelled", "cancelled")
    if job is not None and (job.state in ("waiting", "suspended") or job.is_orphan):
        advice = f": {unstick(fold.run)}" if job.stuck else _adopt(fold.run, submission) if job.is_orphan else ""
        shown = "waiting" if job.is_orphan else job.state
        return replace(row, state=shown, reason=f"{job.native}{advice}", node=job.node or None)
    if status in {"starting", "running"} and (jobs is None or (job is not None and job.state == "running")):
        return replace(row, state=str(status))
    if job is not None and job.state == "running" and (end is None or end.handed_over):
        reason = job.native if job.native != "RUNNING" else None
        return replace(row, state="starting", reason=reason, node=job.node or None)
    if job is not None and job.state == "running" and end is not None and not OUTCOMES[end.cause].is_final:
        reason = f"{state.get('reason')} ({end.cause}): its job looks at its budget when no other fold trains in it"
        return replace(row, state="waiting", reason=reason, cause=end.cause)
    if jobs is None and (end is None or end.handed_over):
        return replace(row, state="waiting")
    return _judge_end(row, fold, attempts[-1] if attempts else None, submission, job)


def _adopt(run: Run, submission: Submission) -> str:
    """Return what to do about a job that waits for a run which has failed."""
    commands = " and ".join(f"`contrails resume {other.typed}`" for other in submission.after)
    return (
        f": go on with {commands or 'that run'}, and this follows; or end it with `contrails cancel {run.typed}`, and "
        "submit it without --after"
    )


def _judge_end(
    row: FoldState, fold: Fold, attempt: Attempt | None, submission: Submission, job: Job | None
) -> FoldState:
    """Return the row of a fold whose newest job has ended; `attempt` is the last one that this job made.

    Why the job's last start ended counts, and what was written down then goes before what the scheduler says.
    """
    end = read_end(attempt) if attempt is not None else None
    start = read_hint(attempt.job).get("restart_count") or 0 if attempt is not None else -1
    fruitless = next((submission.fruitless[n] for n in sorted(submission.fruitless, reverse=True) if n > start), None)
    known = job.cause if job is not None else None
    if job is not None and known == "refused":  # whatever the attempt ended for, that is why nobody goes on
        return _over(row, fold, f"the job that was to go on was not taken: {job.native}", known)
    if attempt is not None and fruitless is None and not (end is not None and end.handed_over):
        state = read_hint(attempt.state)
        said = state.get("reason") or f"attempt {attempt.number} ended without a word at step {row.step}"
        said += "" if end is not None or state.get("reason") else _traces(job, attempt.stderr)
        stepless = state.get("seconds_per_step") is None and not attempt.telemetry.exists()
        return _over(row, fold, said, end.cause if end else known, stepless=stepless, lasted_s=end and end.lasted_s)
    said = f"its job {row.job_id} ended before it began {'an' if attempt is None else 'another'} attempt"
    said += _traces(job, submission.log(fold.run))
    if fruitless is not None:
        return _over(row, fold, said, fruitless.cause, stepless=True, lasted_s=fruitless.lasted_s)
    never_ran = job is not None and job.never_ran
    return _over(row, fold, said, known or (end.cause if end else None), stepless=True, never_ran=never_ran)


def _over(row: FoldState, fold: Fold, said: str, cause: Cause | None, **circumstances: Any) -> FoldState:
    """Return the row of a fold that nobody trains any more; for the circumstances see `next_step`."""
    if fold.cancelled.exists():
        cause = "cancelled"
    name = "cancelled" if cause == "cancelled" else "lost" if cause in (None, "lost") else "failed"
    cause = cause or "lost"
    advice = next_step(cause, fold.run, **circumstances)
    return replace(row, state=name, cause=cause, reason=f"{said} ({cause}): {advice}")


def _traces(job: Job | None, log: Path) -> str:
    """Return what there is to see of a job that has ended without a word: the scheduler's, and its last lines."""
    word = f"; the scheduler says {job.native}" if job is not None and job.state == "ended" else ""
    if not log.exists():
        return word
    # submitit's own words are left out
    lines = [line for line in log.read_text(errors="replace").splitlines() if line and "submitit INFO" not in line]
    shown = f" ({' | '.join(lines[-3:])})" if lines else ""
    return f"{word}{shown}; see {log}"


def _judge_here(
    row: FoldState, fold: Fold, owner: dict[str, Any], state: dict[str, Any], submission: Submission | None
) -> FoldState:
    """Judge a fold of this machine by its processes."""
    status, attempts = state.get("status"), fold.attempts()
    launcher = submission.process if submission else None
    lives = bool(attempts) and status not in OVER and not is_lost(attempts[-1], launcher)
    if fold.cancelled.exists() and not lives:  # also while its job still waits for a place
        return replace(row, state="cancelled", cause="cancelled", reason=next_step("cancelled", fold.run))
    if submission is not None and not submission.is_that_of(owner) and not (launcher and launcher.is_dead()):
        return replace(row, state="waiting", reason=_elsewhere(fold, launcher))  # its job lives and waits for a place
    if lives:
        return replace(row, state=str(status or "starting"))
    if status in {"stopped", "failed"}:
        end = read_end(attempts[-1])
        cause = end.cause if end else None
        what = next_step(cause or ("error" if status == "failed" else "lost"), fold.run)
        return replace(row, state=str(status), reason=f"{state.get('reason', f'it {status}')}; {what}", cause=cause)
    if attempts:
        silent = f"it has written nothing for {SILENCE_S:.0f} s on {owner.get('host', 'its machine')}"
        dead = "its process ended without a word (killed, out of memory, or its machine restarted)"
        process = process_in(owner) or launcher
        return _lost(row, fold, dead if process is not None and process.is_dead() else silent)
    if submission is None:
        return replace(row, state="not submitted")
    return _lost(row, fold, f"its job ended before it began an attempt{_traces(None, submission.log(fold.run))}")


def _elsewhere(fold: Fold, launcher: Process | None) -> str | None:
    """Return what to know of a job that waits on another host, which alone can tell whether it still does."""
    run = fold.run.typed
    if launcher is None or launcher.is_of_this_host():
        return None
    return (
        f"its job waits for its turn on {launcher.host}; if that machine was restarted since, end it with "
        f"`contrails cancel {run} --fold {fold.key}`, then go on with `contrails resume {run}`"
    )


def _lost(row: FoldState, fold: Fold, what: str) -> FoldState:
    advice = next_step("lost", fold.run)
    # the launcher's last words, which know more, may have said what to do
    said = what if f"`contrails resume {fold.run.typed}" in what else f"{what}; {advice}"
    return replace(row, state="lost", cause="lost", reason=said)
