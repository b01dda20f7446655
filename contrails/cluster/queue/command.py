"""Jobs that run one of contrails' own commands, such as an aggregation or a shard of a dataset.

The job runs the frozen code of its folder. When it is started again, the command continues from what is complete.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from contrails.cluster.environment import local_interpreter
from contrails.cluster.queue.freeze import job_environment
from contrails.cluster.queue.journal import submissions
from contrails.cluster.queue.names import job_name
from contrails.cluster.schedulers.base import Request
from contrails.runs.folder import Run


def run_command(arguments: list[str]) -> None:
    """Run `contrails ARGUMENTS` in a job.

    Raises:
        SystemExit: the command failed; the exit code is the command's.
    """
    interpreter = local_interpreter()
    command = [interpreter.python, "-m", "contrails", *arguments]
    # in a new process, since submitit's signal handlers in this one ignore signals
    if code := subprocess.run(command, env=interpreter.variables, check=False).returncode:
        sys.exit(code if code > 0 else 128 - code)


def command_request(
    run: Run,
    what: str,
    arguments: list[str],
    num_threads: int,
    *,
    after: Mapping[str, Path] | None = None,
    teardown: tuple[str, ...] = (),
) -> Request:
    """Return the job that runs a command; its name begins with `what`, such as g0 or p3. See also `Request`."""
    return Request(
        name=job_name(run.path, what, [job.name for job in submissions(run)]),
        function=f"{__name__}:run_command",
        arguments=(arguments,),
        environment=job_environment(run, num_threads),
        after=after or {},
        teardown=teardown,
    )
