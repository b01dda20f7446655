"""The job that trains folds side by side."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from contrails.cluster.queue.command import paths_of
from contrails.cluster.queue.freeze import job_environment
from contrails.cluster.queue.journal import submissions
from contrails.cluster.queue.names import fold_name, job_name
from contrails.cluster.schedulers.base import Request
from contrails.runs.folder import Run

if TYPE_CHECKING:
    from contrails.runs.config import RunConfig


def fold_request(
    run: Run,
    config: "RunConfig",
    folds: list[str],
    *,
    after: Mapping[str, Path] | None = None,
    memory_gb: float | None = None,
    exclude: tuple[str, ...] = (),
) -> Request:
    """Return the job that trains folds side by side, under the next name that the journal does not have."""
    return Request(
        name=job_name(run.path, fold_name(folds), [job.name for job in submissions(run)]),
        function="contrails.cluster.job.launch:run_folds",
        arguments=(str(run.path), folds),
        folds=tuple(folds),
        environment=job_environment(run, config.compute.num_threads),
        after=after or {},
        teardown=(_teardown(run, folds),),
        paths=paths_of(run, config),
        memory_gb=memory_gb,
        exclude=exclude,
    )


def _teardown(run: Run, folds: list[str]) -> str:
    """Return the shell line that ends the job: the teardown, unless the files of all folds say that they are over.

    The exit code alone is not enough, since srun also returns 0 when it loses what it had started.
    """
    arguments = ["-m", "contrails.cluster.job.teardown", str(run.path), ",".join(folds)]
    over = [
        f"{{ [ -e {shlex.quote(str(fold.done))} ] || [ -e {shlex.quote(str(fold.cancelled))} ]; }}"
        for fold in map(run.fold, folds)
    ]
    is_over = " && ".join(['[ "$code" = 0 ]', *over])
    return f'{{ {is_over}; }} || {{ "${{python[@]}}" {shlex.join(arguments)} "$code"; code=$?; }}'
