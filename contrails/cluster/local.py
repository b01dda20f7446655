"""Jobs on this machine, through submitit's local executor, in a session of their own.

`python -m contrails.cluster.local RUN FOLD[,FOLD...]...` submits one job an argument and prints their ids as JSON. It
runs as a short-lived process without a terminal, so that closing the terminal or Ctrl-C reaches none of the jobs.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from contrails.cluster.freeze import job_environment
from contrails.config import RunConfig
from contrails.errors import ClusterError
from contrails.files import storage
from contrails.runs import Run

_NO_LIMIT_MIN = 60 * 24 * 365 * 10
"""submitit's local controller ends a job after its time; a machine of one's own has no walltime."""


def start_jobs(run: Run, config: RunConfig, groups: list[list[str]]) -> list[str]:
    """Start one background job for each group of folds; return the process id of each job's controller.

    Raises:
        ClusterError: submitit could not start them.
    """
    started = subprocess.run(
        [sys.executable, "-m", "contrails.cluster.local", str(run.path), *(",".join(group) for group in groups)],
        env=dict(os.environ) | job_environment(run, config.compute.num_threads),
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
    """Submit the groups of folds named on the command line."""
    run, groups = Run(Path(sys.argv[1])), [group.split(",") for group in sys.argv[2:]]
    # the jobs inherit standard output and error: a pipe there would keep the caller waiting until they end
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answer:
        with storage(run.submitit):
            run.submitit.mkdir(mode=0o700, exist_ok=True)
            with _log(run).open("ab") as file:
                os.dup2(file.fileno(), sys.stdout.fileno())
                os.dup2(file.fileno(), sys.stderr.fileno())
        answer.write(json.dumps(_submit(run, groups)))


def _submit(run: Run, groups: list[list[str]]) -> list[str]:
    from submitit import LocalExecutor

    from contrails.cluster.launch import run_folds

    executor = LocalExecutor(run.submitit)
    executor.update_parameters(timeout_min=_NO_LIMIT_MIN)
    return [executor.submit(run_folds, str(run.path), group).job_id for group in groups]


def _log(run: Run) -> Path:
    return run.submitit / "local.log"


if __name__ == "__main__":
    main()
