"""submitit's executor: `submitit.AutoExecutor(folder, cluster="pbs")`."""

import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from submitit.auto.auto import AutoExecutor
from submitit.core import core, utils

from contrails.errors import ClusterError, RecipeError
from contrails.submitit_pbs import script, staging
from contrails.submitit_pbs.job import PbsJob
from contrails.submitit_pbs.search import element_id


class PbsExecutor(core.Executor):
    """Submits callables to PBS.

    Args:
        folder: folder for pickles, scripts, chains and logs, on storage that the nodes share. It is created for the
            user alone, since write access to it means running code as the user.
        max_num_timeout: how often a callable with checkpoint() may reach the walltime.
        python: shell command of the interpreter; by default the running one.

    Raises:
        ClusterError: this machine has no PBS.
    """

    job_class = PbsJob

    def __init__(self, folder: str | Path, max_num_timeout: int = 3, python: str | None = None) -> None:
        super().__init__(folder)
        self.max_num_timeout = max_num_timeout
        self.python = staging.PYTHON if python is None else python
        if self.affinity() <= 0:
            raise ClusterError(
                "expected the commands of PBS (qsub, pbsnodes) on the PATH, found none: run this on a machine where "
                "PBS jobs are submitted, or load the PBS module"
            )

    @classmethod
    def affinity(cls) -> int:
        """Return 2 on a PBS machine, else -1; Grid Engine also has qsub, but no pbsnodes."""
        return 2 if shutil.which("qsub") and shutil.which("pbsnodes") else -1

    @classmethod
    def _valid_parameters(cls) -> set[str]:
        """Return the parameters that `AutoExecutor` accepts with the prefix `pbs_`."""
        return {parameter.name for parameter in fields(script.Parameters)} - AutoExecutor._valid_parameters()

    def _internal_update_parameters(self, **kwargs: Any) -> None:
        script.Parameters.of(self.parameters | kwargs)
        super()._internal_update_parameters(**kwargs)

    def _internal_process_submissions(self, delayed_submissions: list[utils.DelayedSubmission]) -> list[core.Job[Any]]:
        parameters = script.Parameters.of(self.parameters)
        has_checkpoint = any(hasattr(delayed.function, "checkpoint") for delayed in delayed_submissions)
        chain = parameters.chain
        if chain == script.AUTO:
            chain = script.HELD if has_checkpoint else script.NONE
        # PBS refuses a dependency on an array's element, so a callable with a chain gets its own job
        if chain == script.NONE and len(delayed_submissions) > 1:
            return self._submit_group(delayed_submissions, parameters, chain)
        if parameters.array_parallelism is not None and len(delayed_submissions) > 1:
            raise RecipeError(
                "pbs_array_parallelism: callables that continue after the walltime cannot form an array on PBS; leave "
                "it out, or give pbs_chain = 'none'"
            )
        return [job for delayed in delayed_submissions for job in self._submit_group([delayed], parameters, chain)]

    def _submit_group(
        self, group: Sequence[utils.DelayedSubmission], parameters: script.Parameters, chain: str
    ) -> list[core.Job[Any]]:
        """Submit one job, or an array for several callables; then rename its files to their final names."""
        count, python = self.max_num_timeout, self.python
        staged = staging.stage(self.folder, group, parameters, chain, max_num_timeout=count, python=python)
        array = _array_options(len(group), parameters)
        job_id = staged.submit(array)
        ids = [job_id] if len(group) == 1 else [element_id(job_id, number) for number in range(len(group))]
        staging.name_script(self.folder, staged.pickles[0], ids[0])
        for pickle, id_ in zip(staged.pickles, ids, strict=True):
            staging.name_pickle(self.folder, pickle, id_)
        tasks = range(parameters.tasks_per_node)
        return [PbsJob(folder=self.folder, job_id=id_, tasks=tasks) for id_ in ids]


def _array_options(count: int, parameters: script.Parameters) -> list[str]:
    if count == 1:  # PBS refuses an array of one element
        return []
    throttle = "" if parameters.array_parallelism is None else f"%{parameters.array_parallelism}"
    return ["-J", f"0-{count - 1}{throttle}"]
