"""The command that follows the last fold: `contrails submit --then aggregate`.

`then.json` in the run folder holds the command and the folds that it waits for. The first process that finds all of
them finished claims the command with `then.claim`, under the run's lock, and starts it: in a job of its own, or on this
machine if there is no scheduler. The claim names the job or the process, and at last the exit code. Without an exit
code, a claim is free again if its job was never submitted, has ended or is unknown to the scheduler, or if its process
is gone. It is checked when a job of the run ends, and by `contrails resume` and `contrails submit`.
"""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrails.cluster.queue.command import command_request
from contrails.cluster.queue.journal import Submission, submissions
from contrails.cluster.queue.submission import reconcile, submit_job, submitting
from contrails.cluster.schedulers.base import Job, scheduler_of
from contrails.cluster.schedulers.slots import DEVICES
from contrails.errors import ClusterError, StorageError
from contrails.files import create_exclusive, read_hint, to_json, write_atomic
from contrails.processes import process_in, process_of
from contrails.runs.folder import Run
from contrails.train.attempt import BEAT_S, is_gone

if TYPE_CHECKING:
    from contrails.cluster.schedulers.sites import Site
    from contrails.runs.config import RunConfig


def ask_for(run: Run, command: list[str], folds: list[str]) -> None:
    """Record the command that follows the last of the folds; if it or the folds have changed, remove the old claim."""
    asked = {"command": command, "folds": folds}
    if read_hint(run.then) != asked:
        run.then_claim.unlink(missing_ok=True)
        write_atomic(run.then, to_json(asked))


def forget_failure(run: Run) -> None:
    """Let `start_if_due` start a failed command again, unless its job has already started again."""
    claim = read_hint(run.then_claim)
    if claim.pop("code", 0):
        write_atomic(run.then_claim, to_json(claim))


def start_if_due(run: Run, config: "RunConfig", site: "Site") -> None:
    """Start the command if every fold is finished, nothing works on it and it has not ended.

    Raises:
        ClusterError: the scheduler refuses or does not answer; the next call tries again.
    """
    if not _is_due(run):
        return
    with submitting(run):
        has_queue = scheduler_of(site).CAPABILITIES.has_queue
        has_job = has_queue and "job_name" in read_hint(run.then_claim)
        if not _is_free(run, reconcile(run, site) if has_job else {}):
            return
        if has_queue:
            _submit(run, config, site)
            return
        if not _claim(run, process_of(os.getpid()).to_json()):
            return
    _run_here(run)


def unfinished_job(run: Run) -> Submission | None:
    """Return the job submitted for the command that has not recorded success; None if there is none."""
    claim = read_hint(run.then_claim)
    if claim.get("code") == 0 or "job_name" not in claim:
        return None
    return next((job for job in submissions(run) if job.name == claim["job_name"] and job.job_id is not None), None)


@dataclass(frozen=True)
class Following:
    """The state of the command that follows the last fold.

    `state` is one of: waiting (for folds, or for their last job, which starts the command), not started, queued,
    running, done, failed, lost. `stale` is True if the scheduler was asked about its job and did not answer.
    """

    command: str
    folds: tuple[str, ...]
    state: str
    reason: str | None = None
    job_id: str | None = None
    stale: bool = False


def following(run: Run, jobs: Mapping[str, Job] | None) -> Following | None:
    """Return the state of the command; None if there is no command, or the journal cannot be read.

    Writes nothing.

    Args:
        run: the run.
        jobs: what the scheduler knows of its jobs, by name; None if it was not asked or did not answer.
    """
    asked = read_hint(run.then)
    if not asked.get("folds"):
        return None
    row = Following(shlex.join(["contrails", *asked.get("command", [])]), tuple(map(str, asked["folds"])), "waiting")
    try:
        return _judge(row, run, jobs) if _is_due(run) else row
    except StorageError:  # the states of the folds report it
        return None


def left_to_do(run: Run, jobs: Mapping[str, Job] | None) -> str | None:
    """Return what happened to a command that is due but has not succeeded, with the next step; else None.

    The arguments are those of `following`.
    """
    row = following(run, jobs)
    if row is None or row.state not in ("not started", "failed", "lost"):
        return None
    return f"the command after the last fold {row.reason}; try it again with `contrails resume {run.typed}`"


def _judge(row: Following, run: Run, jobs: Mapping[str, Job] | None) -> Following:
    """Return the row of a command that is due, with its state.

    The order matters. A job that is alive takes precedence over the exit code in the claim, which may be that of an
    earlier start of the job. A claim without job and code is that of a process on this machine.
    """
    claim, job = read_hint(run.then_claim), unfinished_job(run)
    if job is not None:
        row, known = replace(row, job_id=job.job_id), None if jobs is None else jobs.get(job.name)
        if jobs is None:
            return replace(row, state="queued", stale=True)
        if known is not None and _is_alive(known):
            return replace(row, state="running" if known.state == "running" else "queued", reason=known.native)
    if "code" in claim:
        log = run.submitit if job is None else job.log(run)
        why = f"failed with exit code {claim['code']} (see {log})"
        return replace(row, state="failed", reason=why) if claim["code"] else replace(row, state="done")
    if job is not None:
        return replace(row, state="lost", reason=f"was lost with its job {job.job_id}")
    if "error" in claim:
        return replace(row, state="failed", reason=f"could not be started ({claim['error']})")
    if "pid" in claim:
        gone = _is_abandoned(run, claim)
        return replace(row, state="lost", reason="was interrupted") if gone else replace(row, state="running")
    if any(_lives(job, jobs) for job in submissions(run) if job.folds):
        return replace(row, reason="it starts when the last job of the folds ends")
    return replace(row, state="not started", reason="has not been started")


def _lives(job: Submission, jobs: Mapping[str, Job] | None) -> bool:
    """Return whether a job of folds may still run; it starts the command when it ends."""
    if job.process:
        return not is_gone(job.process, [job.time])
    return not job.void and (jobs is None or _is_alive(jobs.get(job.name)))


def _is_due(run: Run) -> bool:
    folds = read_hint(run.then).get("folds", [])
    return bool(folds) and {fold.key for fold in run.folds() if fold.done.exists()} >= set(map(str, folds))


def _is_free(run: Run, jobs: Mapping[str, Job]) -> bool:
    """Return whether nothing works on the command and it has not ended; the caller holds the lock.

    The claim is read after the scheduler was asked for jobs, since the command may end in between.
    """
    claim = read_hint(run.then_claim)
    if _is_alive(jobs.get(str(claim.get("job_name")))):
        return False
    return "code" not in claim and ("pid" not in claim or _is_abandoned(run, claim))


def _is_alive(job: Job | None) -> bool:
    return job is not None and job.state != "ended"


def _is_abandoned(run: Run, claim: dict[str, Any]) -> bool:
    """Return whether the process of a claim is gone."""
    return is_gone(process_in(claim), (claim.get("time", 0.0), run.then_claim.stat().st_mtime))


def _claim(run: Run, owner: dict[str, Any]) -> bool:
    """Replace a free claim; the first process wins, even on a file system without locks."""
    if run.then_claim.exists():
        run.then_claim.unlink()
    return create_exclusive(run.then_claim, to_json(owner))


def _submit(run: Run, config: "RunConfig", site: "Site") -> None:
    """Submit a job for the command; the claim comes first, since the journal records the job under this name."""
    request = command_request(run, "g0", read_hint(run.then)["command"], config.compute.num_threads)
    end = shlex.join(["-m", "contrails.cluster.queue.then", str(run.path), request.name])
    owner = {"job_name": request.name}
    if not _claim(run, owner):
        return
    try:
        submit_job(run, site, replace(request, teardown=(f'"${{python[@]}}" {end} "$code"',)))
    except ClusterError as error:  # some sites forbid submission from nodes; `contrails status` shows the error
        write_atomic(run.then_claim, to_json(owner | {"error": str(error)}))
        raise


def _run_here(run: Run) -> None:
    """Run the command in a child process, and renew the claim regularly while it runs."""
    command = [sys.executable, "-m", "contrails", *read_hint(run.then)["command"]]
    devices = os.environ.get(DEVICES)
    environment = dict(os.environ) | ({"CUDA_VISIBLE_DEVICES": devices} if devices else {})
    # stdout to stderr, so that `contrails submit --json` prints nothing but JSON
    with subprocess.Popen(command, env=environment, stdout=sys.stderr) as process:
        owner, code = process_of(process.pid).to_json(), None
        while code is None:
            write_atomic(run.then_claim, to_json(owner | {"time": time.time()}))
            try:
                code = process.wait(BEAT_S)
            except subprocess.TimeoutExpired:
                continue
    write_atomic(run.then_claim, to_json({"code": code}))


def main() -> None:
    """Record the exit code of the command's job: `python -m contrails.cluster.queue.then RUN NAME CODE`."""
    claim, name, code = Run(Path(sys.argv[1])).then_claim, sys.argv[2], int(sys.argv[3])
    known = read_hint(claim)
    if known.get("job_name") == name:  # otherwise a newer job has replaced it
        write_atomic(claim, to_json(known | {"code": code}))


if __name__ == "__main__":
    main()
