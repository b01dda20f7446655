"""One of contrails' own commands as a job: an aggregation, a shard of a dataset.

The job runs the frozen code of its folder; what the command has half done, it goes on with when the job starts again.
"""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from contrails.cluster.queue.freeze import job_environment
from contrails.cluster.queue.journal import submissions
from contrails.cluster.queue.names import job_name
from contrails.cluster.schedulers.base import Request
from contrails.runs.folder import Run


def run_command(arguments: list[str]) -> None:
    """Run `contrails ARGUMENTS` in a job.

    Raises:
        SystemExit: it failed; the code is its own.
    """
    # in a process of its own: this one has submitit's handlers, which let signals pass by
    if code := subprocess.run([sys.executable, "-m", "contrails", *arguments], check=False).returncode:
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
    """Return the job that runs a command; `what` begins its name, such as g0 or p3. For the rest see `Request`."""
    return Request(
        name=job_name(run.path, what, [job.name for job in submissions(run)]),
        function=f"{__name__}:run_command",
        arguments=(arguments,),
        environment=job_environment(run, num_threads),
        after=after or {},
        teardown=teardown,
    )
