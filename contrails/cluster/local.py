"""Jobs on this machine, through submitit's local executor, in a session of their own.

`python -m contrails.cluster.local RUN NAME=FOLD[,FOLD...]...` submits one job an argument and prints their ids as JSON.
It runs as a short-lived process without a terminal, so that closing the terminal or Ctrl-C reaches none of the jobs.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from contrails.cluster.freeze import job_environment
from contrails.cluster.slots import DEVICES
from contrails.cluster.submission import make_job_folder
from contrails.config import RunConfig
from contrails.errors import ClusterError
from contrails.files import storage
from contrails.runs import Run

_NO_LIMIT_MIN = 60 * 24 * 365 * 10
"""submitit's local controller ends a job after its time; a machine of one's own has no walltime."""


def start_jobs(
    run: Run, config: RunConfig, jobs: Mapping[str, Sequence[str]], devices: Sequence[str] = ()
) -> list[str]:
    """Start background jobs, each for some folds; return the process id of each job's controller.

    Args:
        run: whose folds they are.
        config: its frozen configuration.
        jobs: the folds of each job, by its name.
        devices: the GPUs that they may use.

    Raises:
        ClusterError: submitit could not start them.
    """
    words = [f"{name}={','.join(folds)}" for name, folds in jobs.items()]
    started = subprocess.run(
        [sys.executable, "-m", "contrails.cluster.local", str(run.path), *words],
        env=dict(os.environ) | job_environment(run, config.compute.num_threads) | {DEVICES: ",".join(devices)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        check=False,
    )
    if started.returncode:
        raise ClusterError(f"the jobs could not be started; {_log(run)} says why")
    ids: list[str] = json.loads(started.stdout)
    return ids


def main() -> None:
    """Submit the jobs named on the command line."""
    run, jobs = Run(Path(sys.argv[1])), dict(word.split("=") for word in sys.argv[2:])
    # the jobs inherit standard output and error: a pipe there would keep the caller waiting until they end
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answer:
        with storage(run.submitit):
            run.submitit.mkdir(mode=0o700, exist_ok=True)
            with _log(run).open("ab") as file:
                os.dup2(file.fileno(), sys.stdout.fileno())
                os.dup2(file.fileno(), sys.stderr.fileno())
        answer.write(json.dumps([_submit(run, name, folds.split(",")) for name, folds in jobs.items()]))


def _submit(run: Run, name: str, folds: list[str]) -> str:
    from submitit import LocalExecutor

    from contrails.cluster.launch import run_folds

    executor = LocalExecutor(make_job_folder(run, name))
    executor.update_parameters(timeout_min=_NO_LIMIT_MIN)
    return executor.submit(run_folds, str(run.path), folds).job_id


def _log(run: Run) -> Path:
    return run.submitit / "local.log"


if __name__ == "__main__":
    main()
