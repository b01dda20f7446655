"""The jobs that contrails asks for: folds side by side, or one of its own commands."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from contrails.cluster.queue.freeze import job_environment
from contrails.cluster.queue.journal import submissions
from contrails.cluster.queue.names import fold_name, job_name
from contrails.cluster.schedulers.base import Request
from contrails.runs.folder import Run


def fold_request(
    run: Run,
    num_threads: int,
    folds: list[str],
    *,
    after: Mapping[str, Path] | None = None,
    memory_gb: float | None = None,
    exclude: tuple[str, ...] = (),
) -> Request:
    """Return the job that trains folds side by side; its name is the next one that the journal has not seen."""
    return Request(
        name=job_name(run.path, fold_name(folds), [job.name for job in submissions(run)]),
        function="contrails.cluster.job.launch:run_folds",
        arguments=(str(run.path), folds),
        folds=tuple(folds),
        environment=job_environment(run, num_threads),
        after=after or {},
        teardown=(_teardown(run, folds),),
        memory_gb=memory_gb,
        exclude=exclude,
    )


def _teardown(run: Run, folds: list[str]) -> str:
    """Return the shell line that ends the job; the folds' files say whether there is anything to do, not the code.

    srun says 0 as well where what it had started was lost without a word.
    """
    command = [sys.executable, "-m", "contrails.cluster.job.teardown", str(run.path), ",".join(folds)]
    over = [
        f"{{ [ -e {shlex.quote(str(fold.done))} ] || [ -e {shlex.quote(str(fold.cancelled))} ]; }}"
        for fold in map(run.fold, folds)
    ]
    is_over = " && ".join(['[ "$code" = 0 ]', *over])
    return f'{{ {is_over}; }} || {{ {shlex.join(command)} "$code"; code=$?; }}'
