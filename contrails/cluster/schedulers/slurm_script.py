"""The batch script of a Slurm job, as submitit writes it, and the command that submits it."""

import os
import shlex
from pathlib import Path
from typing import Any

from contrails.cluster.schedulers.base import Request
from contrails.cluster.schedulers.sites import Site
from contrails.errors import ClusterError

_SIGNALS = "TERM USR1 USR2"
"""What Slurm may send to the batch shell, which must live on to see how srun ended."""


def script(folder: Path, site: Site, request: Request) -> str:
    """Return the batch script of a job."""
    executor = executor_of(folder, site, request)
    return str(executor._make_submission_file_text(executor._submitit_command_str, uid=""))


def command(script: Path) -> list[str]:
    """Return the command that submits a script.

    Inside of a job it leaves out what that job's environment says of memory and cores: srun refuses the mixture.
    """
    stale = [name for name in os.environ if name.startswith(("SLURM_", "SRUN_")) and name != "SLURM_CONF"]
    clean = ["env", *(part for name in sorted(stale) for part in ("-u", name))] if stale else []
    return [*clean, "sbatch", str(script)]


def executor_of(folder: Path, site: Site, request: Request) -> Any:
    """Return submitit's executor for a job of the site.

    Raises:
        ClusterError: the folder cannot hold the logs.
    """
    from submitit import SlurmExecutor

    class Executor(SlurmExecutor):
        """Slurm as submitit sees it; also where srun is missing, to show a script."""

        @classmethod
        def affinity(cls) -> int:
            return 2

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            return command(submission_file_path)

    if "%" in str(folder):
        raise ClusterError(f"{folder}: Slurm puts other text for a % in the path of a log; choose another folder")
    executor = Executor(folder)
    executor.update_parameters(**_parameters(site, request))
    return executor


def _parameters(site: Site, request: Request) -> dict[str, Any]:
    """Return what submitit is told about a job, in its words."""
    memory = request.memory_gb or site.memory_gb
    gpus = f"{site.gpu_type}:{site.num_gpus}" if site.gpu_type else site.num_gpus
    return {
        "job_name": request.name,
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "time": site.walltime_min,
        "signal_delay_s": site.margin_s,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": site.num_cpus,
        "gpus_per_node": gpus if site.num_gpus else None,
        "mem": f"{round(memory * 1024)}M" if memory else None,
        "dependency": f"afterok:{':'.join(request.after)}" if request.after else None,
        "exclude": ",".join(request.exclude) or None,
        "wckey": None,
        "additional_parameters": {"requeue": True, **site.scheduler_arguments},
        # srun does not take the number of cores from its job, since Slurm 22.05
        "srun_args": [f"--cpus-per-task={site.num_cpus}"],
        "setup": _setup(site, request),
        # the lines between, and the job's own result, need the code of srun
        "teardown": ["code=$?", *request.teardown, "exit $code"],
    }


def _setup(site: Site, request: Request) -> list[str]:
    lines = [*site.prologue]
    if site.environment is not None:
        lines.append(f"source {shlex.quote(str(site.environment.absolute()))}")
    lines += [f"export {name}={shlex.quote(value)}" for name, value in sorted((request.environment or {}).items())]
    # a handler, not '', which srun would inherit
    return [*lines, f"trap : {_SIGNALS}"]
