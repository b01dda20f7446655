"""Jobs that run one of contrails' own commands, such as an aggregation or a shard of a dataset.

The job runs the frozen code of its folder. When it is started again, the command continues from what is complete.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contrails.cluster.environment import local_interpreter
from contrails.cluster.queue.freeze import job_environment
from contrails.cluster.queue.journal import submissions
from contrails.cluster.queue.names import job_name
from contrails.cluster.schedulers.base import Request
from contrails.runs.folder import Run, runs_root

if TYPE_CHECKING:
    from contrails.runs.config import RunConfig


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
        paths=_paths_of_command(run, arguments),
    )


def paths_of(run: Run, config: "RunConfig") -> tuple[Path, ...]:
    """Return the folder of a run's root, and the files and folders that its recipe names."""
    return (run.path.parent, *_paths_in(config.recipe.model_dump()))


def _paths_of_command(run: Run, arguments: list[str]) -> tuple[Path, ...]:
    """Return the paths among the words of a command, such as DATA or --table=DATA, and those of the runs it names."""
    named = [Path(word.partition("=")[2] if word.startswith("--") else word) for word in arguments]
    paths = [run.path.parent, runs_root(), *(path for path in named if path.is_absolute())]
    for each in (run, *map(Run, named)):
        if each.toml.is_file():
            paths += paths_of(each, each.read_config())
    return tuple(paths)


def _paths_in(values: Any) -> Iterator[Path]:
    if isinstance(values, Path):
        yield values
    elif isinstance(values, dict):
        yield from _paths_in(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _paths_in(value)
