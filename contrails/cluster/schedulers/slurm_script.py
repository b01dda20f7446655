"""The batch script of a Slurm job, as submitit writes it, and the command that submits it."""

import os
import shlex
from pathlib import Path
from typing import Any

from contrails.cluster.schedulers import containers
from contrails.cluster.schedulers.base import Request
from contrails.cluster.schedulers.sites import Site
from contrails.errors import ClusterError

_SIGNALS = "TERM USR1 USR2"
"""Signals that Slurm sends to the batch shell too, which must survive them to see the exit code of srun."""


def script(folder: Path, site: Site, request: Request) -> str:
    """Return the batch script of a job."""
    executor = executor_of(folder, site, request)
    return str(executor._make_submission_file_text(executor._submitit_command_str, uid=""))


def command(script: Path) -> list[str]:
    """Return the command that submits a script.

    If it runs inside a job, the variables with the memory and cores of that job are removed first: srun of the new job
    would refuse the mixture.
    """
    stale = [name for name in os.environ if name.startswith(("SLURM_", "SRUN_")) and name != "SLURM_CONF"]
    clean = ["env", *(part for name in sorted(stale) for part in ("-u", name))] if stale else []
    return [*clean, "sbatch", str(script)]


def executor_of(folder: Path, site: Site, request: Request) -> Any:
    """Return submitit's executor for a job of the site.

    Raises:
        ClusterError: the folder's path contains a %.
    """
    from submitit import SlurmExecutor

    class Executor(SlurmExecutor):
        """submitit's executor; also works without srun, to show a script."""

        @classmethod
        def affinity(cls) -> int:
            return 2

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            return command(submission_file_path)

    if "%" in str(folder):
        raise ClusterError(f"{folder}: Slurm replaces the character % in paths of logs; choose another folder")
    executor = Executor(folder, python=containers.python(site, request))
    executor.update_parameters(**_parameters(site, request))
    return executor


def _parameters(site: Site, request: Request) -> dict[str, Any]:
    """Return submitit's parameters for a job."""
    memory = request.memory_gb or site.memory_gb
    num_nodes = site.num_nodes if request.folds else 1
    # the death of one launcher ends the others; one that has nothing left to do waits for the first
    together = ["--kill-on-bad-exit=1", "--wait=0"] if num_nodes > 1 else []
    gpus = f"{site.gpu_type}:{site.num_gpus}" if site.gpu_type else site.num_gpus
    return {
        "job_name": request.name,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "time": site.walltime_min,
        "signal_delay_s": site.margin_s,
        "nodes": num_nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": site.num_cpus,
        "gpus_per_node": gpus if site.num_gpus else None,
        "mem": f"{round(memory * 1024)}M" if memory else None,
        "dependency": f"afterok:{':'.join(request.after)}" if request.after else None,
        "exclude": ",".join(request.exclude) or None,
        "wckey": None,
        "additional_parameters": {"requeue": True, **site.scheduler_arguments},
        # since Slurm 22.05, srun does not inherit the number of cores from its job
        "srun_args": [f"--cpus-per-task={site.num_cpus}", *together],
        "setup": _setup(site, request),
        # the teardown lines, and the job's own result, need the exit code of srun
        "teardown": ["code=$?", f"python=({containers.python(site, request)})", *request.teardown, "exit $code"],
    }


def _setup(site: Site, request: Request) -> list[str]:
    lines = [*site.prologue]
    if site.environment is not None:
        lines.append(f"source {shlex.quote(str(site.environment.absolute()))}")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted((request.environment or {}).items())]
    # a handler that does nothing, since srun would inherit an ignored signal
    return [*lines, f"trap : {_SIGNALS}"]
