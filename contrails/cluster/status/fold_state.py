"""The state of a fold, from its own files first.

`done.json` decides; then the newest attempt's files, then the journal. What the scheduler says is a hint: a job that
it does not know is lost, never done or failed. Nothing here imports torch.
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
from contrails.cluster.status.usage import UNUSED, Usage
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
    done. `stale` is True if the scheduler was asked and did not answer.
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
    """How its attempts differ, so that the result is not exact (see `contrails.cluster.status.exact`)."""
    cause: str | None = None
    job_id: str | None = None
    node: str | None = None
    stale: bool = False
    usage: Usage = UNUSED


def fold_state(fold: Fold, jobs: Mapping[str, Job] | None = None) -> FoldState:
    """Return the state of a fold.

    Args:
        fold: a fold of any run.
        jobs: what the scheduler knows, by names of jobs; None if there is none, or it was not asked or did not answer.
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
            "node": owner.get("node") or owner.get("host"),  # the scheduler's name of the node, if it has one
            "differences": differences(fold),
            # state.json is written at intervals, so a snapshot may be newer
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
        row = _over(row, fold, f"its job was not accepted: {last.refusal}", "refused")
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
    """Return the row of an unfinished fold with its state, and the reason if there is one.

    The order of the cases matters. The files of an attempt are used only if the fold's newest job made it. A tombstone
    takes precedence over the job's state, since the job may continue with other folds. After that, the scheduler's
    answer about the job is compared with the attempt's own files. Only if neither says that the fold is alive, the row
    says how the job ended.
    """
    owner = read_hint(attempts[-1].job) if attempts else {}
    if submission is None or submission.process:
        return _judge_here(row, fold, owner, state, submission)
    if not submission.is_that_of(owner):
        state, attempts = {}, []  # the newest job has made no attempt yet
    end = read_end(attempts[-1]) if attempts else None
    status = state.get("status")
    job = jobs.get(submission.name) if jobs is not None else None
    if fold.cancelled.exists() and status not in {"starting", "running"}:  # even if its job goes on for other folds
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
        reason = f"{state.get('reason')} ({end.cause}): its job decides about a retry when its other folds have ended"
        return replace(row, state="waiting", reason=reason, cause=end.cause)
    if jobs is None and (end is None or end.handed_over):
        return replace(row, state="waiting")
    return _judge_end(row, fold, attempts[-1] if attempts else None, submission, job)


def _adopt(run: Run, submission: Submission) -> str:
    """Return the advice about a job that waits for a failed run."""
    commands = " and ".join(f"`contrails resume {other.typed}`" for other in submission.after)
    return (
        f": go on with {commands or 'that run'}, and this run follows; or end it with "
        f"`contrails cancel {run.typed}`, and submit it without --after"
    )


def _judge_end(
    row: FoldState, fold: Fold, attempt: Attempt | None, submission: Submission, job: Job | None
) -> FoldState:
    """Return the row of a fold whose newest job has ended; `attempt` is the last one that this job made.

    The row says how the last start of the job ended. A cause that was recorded takes precedence over the scheduler's.
    """
    end = read_end(attempt) if attempt is not None else None
    start = read_hint(attempt.job).get("restart_count") or 0 if attempt is not None else -1
    fruitless = next((submission.fruitless[n] for n in sorted(submission.fruitless, reverse=True) if n > start), None)
    known = job.cause if job is not None else None
    if job is not None and known == "refused":  # this, not the attempt's own end, is why the fold does not continue
        return _over(row, fold, f"its next job was not accepted: {job.native}", known)
    if attempt is not None and fruitless is None and not (end is not None and end.handed_over):
        state = read_hint(attempt.state)
        said = state.get("reason") or f"attempt {attempt.number} ended without a message at step {row.step}"
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
    """Return the row of a fold that nothing trains any more; for `circumstances` see `next_step`."""
    if fold.cancelled.exists():
        cause = "cancelled"
    name = "cancelled" if cause == "cancelled" else "lost" if cause in (None, "lost") else "failed"
    cause = cause or "lost"
    advice = next_step(cause, fold.run, **circumstances)
    return replace(row, state=name, cause=cause, reason=f"{said} ({cause}): {advice}")


def _traces(job: Job | None, log: Path) -> str:
    """Return what is known of a job that ended without a message: the scheduler's state, and the end of its log."""
    word = f"; the scheduler says {job.native}" if job is not None and job.state == "ended" else ""
    if not log.exists():
        return word
    said = end_of_log(log)
    return f"{word}{f' ({said})' if said else ''}; see {log}"


def end_of_log(log: Path) -> str:
    """Return the last lines of a job's log on one line, without those of submitit itself; empty if there are none."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return " | ".join([line for line in text.splitlines() if line and "submitit INFO" not in line][-3:])


def _judge_here(
    row: FoldState, fold: Fold, owner: dict[str, Any], state: dict[str, Any], submission: Submission | None
) -> FoldState:
    """Return the row of a fold of this machine, by its processes."""
    status, attempts = state.get("status"), fold.attempts()
    launcher = submission.process if submission else None
    lives = bool(attempts) and status not in OVER and not is_lost(attempts[-1], launcher)
    if fold.cancelled.exists() and not lives:  # even if its job still waits for a slot
        return replace(row, state="cancelled", cause="cancelled", reason=next_step("cancelled", fold.run))
    if submission is not None and not submission.is_that_of(owner) and not (launcher and launcher.is_dead()):
        return replace(row, state="waiting", reason=_elsewhere(fold, launcher))  # its job waits for a slot
    if lives:
        return replace(row, state=str(status or "starting"))
    if status in {"stopped", "failed"}:
        end = read_end(attempts[-1])
        cause = end.cause if end else None
        what = next_step(cause or ("error" if status == "failed" else "lost"), fold.run)
        return replace(row, state=str(status), reason=f"{state.get('reason', f'it {status}')}; {what}", cause=cause)
    if attempts:
        silent = f"it has written nothing for {SILENCE_S:.0f} s on {owner.get('host', 'its machine')}"
        dead = "its process ended without a message (killed, out of memory, or its machine restarted)"
        process = process_in(owner) or launcher
        return _lost(row, fold, dead if process is not None and process.is_dead() else silent)
    if submission is None:
        return replace(row, state="not submitted")
    return _lost(row, fold, f"its job ended before it began an attempt{_traces(None, submission.log(fold.run))}")


def _elsewhere(fold: Fold, launcher: Process | None) -> str | None:
    """Return advice about a job that waits on another host, since only that host knows whether it still does."""
    run = fold.run.typed
    if launcher is None or launcher.is_of_this_host():
        return None
    return (
        f"its job waits for a slot on {launcher.host}; if that machine was restarted since, end it with "
        f"`contrails cancel {run} --fold {fold.key}`, then go on with `contrails resume {run}`"
    )


def _lost(row: FoldState, fold: Fold, what: str) -> FoldState:
    advice = next_step("lost", fold.run)
    # the end of the launcher's log may already contain the advice
    said = what if f"`contrails resume {fold.run.typed}" in what else f"{what}; {advice}"
    return replace(row, state="lost", cause="lost", reason=said)
