"""What comes after the last fold: `contrails submit --then aggregate`.

`then.json` in the run holds the command and the folds that it waits for. Whoever finds all of them finished claims it
by creating `then.claim`, exclusively, and starts the command: in a job of its own, or here without a scheduler. The
claim then says how it went: `python -m contrails.cluster.then RUN CODE` at the end of the job's script adds the code.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from contrails.cluster.command import command_request
from contrails.cluster.journal import submissions
from contrails.cluster.sites import Site
from contrails.cluster.submission import submit_job, submitting
from contrails.config import RunConfig
from contrails.errors import ClusterError
from contrails.files import create_exclusive, read_hint, to_json, write_atomic
from contrails.runs import Run
from contrails.train.attempt import is_dead, process_of


def ask_for(run: Run, command: list[str], folds: list[str]) -> None:
    """Have a command follow the last of the folds; asking for the same again tries again what failed."""
    asked = {"command": command, "folds": folds}
    if read_hint(run.then) != asked or left_to_do(run) is not None:
        run.then_claim.unlink(missing_ok=True)
        write_atomic(run.then, to_json(asked))


def start_if_due(run: Run, config: RunConfig, site: Site) -> None:
    """Start what was asked for if every fold is finished and nobody else has started it."""
    if not _is_due(run) or not create_exclusive(run.then_claim, to_json(process_of(os.getpid()))):
        return
    command = read_hint(run.then)["command"]
    if site.scheduler == "local":
        done = subprocess.run([sys.executable, "-m", "contrails", *command], check=False)
        write_atomic(run.then_claim, to_json({"code": done.returncode}))
        return
    end = shlex.join([sys.executable, "-m", "contrails.cluster.then", str(run.path)])
    try:
        with submitting(run):
            request = command_request(run, "g0", command, config.compute.num_threads, teardown=(f'{end} "$code"',))
            job_id = submit_job(run, site, request)
    except ClusterError as error:  # some sites let no node submit: `contrails status` prints the command
        write_atomic(run.then_claim, to_json({"error": str(error)}))
        return
    write_atomic(run.then_claim, to_json({"job_id": job_id}))


def left_to_do(run: Run) -> str | None:
    """Return what became of the command if it was asked for, is due and did not succeed, and what to type now."""
    if not _is_due(run):
        return None
    claim = read_hint(run.then_claim)
    why = _failure(run, claim)
    if why is None:
        return None
    return f"what was to follow {why}; type: {shlex.join(['contrails', *read_hint(run.then)['command']])}"


def _failure(run: Run, claim: dict[str, Any]) -> str | None:
    if claim.get("code"):
        logs = [job.log(run) for job in submissions(run) if job.job_id == claim.get("job_id", "")]
        return f"failed with exit code {claim['code']}, see {logs[-1] if logs else run.submitit}"
    if "job_id" in claim or "code" in claim or ("pid" in claim and not is_dead(claim)):
        return None  # it waits, runs, or has succeeded
    return "could not be started"


def _is_due(run: Run) -> bool:
    folds = read_hint(run.then).get("folds", [])
    return bool(folds) and all(run.fold(key).done.exists() for key in folds)


def main() -> None:
    """Write down how the command's job has ended."""
    claim = Run(Path(sys.argv[1])).then_claim
    write_atomic(claim, to_json(read_hint(claim) | {"code": int(sys.argv[2])}))


if __name__ == "__main__":
    main()
