"""What comes after the last fold: `contrails submit --then aggregate`.

`then.json` in the run holds the command and the folds that it waits for. Whoever finds all of them finished claims it
by creating `then.claim`, exclusively, and starts the command: in a job of its own, or here without a scheduler.
"""

import shlex
import socket
import subprocess
import sys

from contrails.cluster.command import command_request
from contrails.cluster.sites import Site
from contrails.cluster.submission import submit_job, submitting
from contrails.config import RunConfig
from contrails.errors import ClusterError
from contrails.files import create_exclusive, read_hint, to_json, write_atomic
from contrails.runs import Run


def ask_for(run: Run, command: list[str], folds: list[str]) -> None:
    """Have a command follow the last of the folds; asking again counts anew."""
    run.then_claim.unlink(missing_ok=True)
    write_atomic(run.then, to_json({"command": command, "folds": folds}))


def start_if_due(run: Run, config: RunConfig, site: Site) -> None:
    """Start what was asked for if every fold is finished and nobody else has started it."""
    if not _is_due(run) or not create_exclusive(run.then_claim, to_json({"host": socket.gethostname()})):
        return
    command = read_hint(run.then)["command"]
    if site.scheduler == "local":
        done = subprocess.run([sys.executable, "-m", "contrails", *command], check=False)
        write_atomic(run.then_claim, to_json({"code": done.returncode}))
        return
    try:
        with submitting(run):
            job_id = submit_job(run, site, command_request(run, "g0", command, config.compute.num_threads))
    except ClusterError as error:  # some sites let no node submit: `contrails status` prints the command
        write_atomic(run.then_claim, to_json({"error": str(error)}))
        return
    write_atomic(run.then_claim, to_json({"job_id": job_id}))


def left_to_do(run: Run) -> str | None:
    """Return the command that somebody must type, if it was asked for and could not be started."""
    claim = read_hint(run.then_claim)
    if not _is_due(run) or "job_id" in claim or claim.get("code") == 0:
        return None
    return shlex.join(["contrails", *read_hint(run.then)["command"]])


def _is_due(run: Run) -> bool:
    folds = read_hint(run.then).get("folds", [])
    return bool(folds) and all(run.fold(key).done.exists() for key in folds)
