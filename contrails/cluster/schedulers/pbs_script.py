"""The parameters of the PBS plugin, and the shell lines around the task, from a site and a request."""

import shlex
from pathlib import Path

from contrails.cluster.schedulers import containers
from contrails.cluster.schedulers.base import Request
from contrails.cluster.schedulers.sites import Site
from contrails.submitit_pbs import script


def spec_for(folder: Path, site: Site, request: Request) -> script.Spec:
    """Return the options and the script of a job."""
    return script.make_spec(parameters_for(site, request), folder, chain_of(site, request))


def chain_of(site: Site, request: Request) -> str:
    """Return when the next link is submitted; a job that runs a contrails command has only one link."""
    return site.next_job if request.folds else script.NONE


def parameters_for(site: Site, request: Request) -> script.Parameters:
    """Return the plugin's parameters for a job."""
    retries = site.retries
    return script.Parameters(
        name=request.name,
        timeout_min=site.walltime_min,
        mem_gb=request.memory_gb or site.memory_gb,
        cpus_per_task=site.num_cpus,
        gpus_per_node=site.num_gpus,
        queue=site.partition,
        account=site.account,
        resources=site.resources,
        setup=_setup(site, request),
        teardown=_teardown(site, request),
        additional_parameters={f"-{name}": str(value) for name, value in site.scheduler_arguments.items()},
        after=[str(folder / job_id) for job_id, folder in request.after.items()],
        signal_delay_s=site.margin_s,
        budgets={
            "TIMEOUT": retries.walltime,
            "OUT_OF_MEMORY": retries.memory,
            "KILLED": retries.memory,
            "NODE_FAIL": retries.node,
            "LOST": retries.lost,
        },
    )


def _setup(site: Site, request: Request) -> list[str]:
    """Return the shell lines before the task; a PBS job does not inherit the environment of the submitting shell."""
    lines = [*site.prologue]
    if site.environment is not None:
        lines.append(f"source {shlex.quote(str(site.environment.absolute()))}")
    return lines + [
        f"export {name}={shlex.quote(value)}" for name, value in sorted((request.environment or {}).items())
    ]


def _teardown(site: Site, request: Request) -> list[str]:
    """Return the shell lines after the task; they run where the task runs, in the container if there is one."""
    python = [f"python=({containers.interpreter(site)})"] if request.teardown else []
    return [*python, *request.teardown, *_clean_up(site)]


def _clean_up(site: Site) -> list[str]:
    """Return the shell lines that empty the job's scratch folder; PBS removes the folder itself."""
    if "SCRATCHDIR" not in str(site.stage_dir):
        return []
    # in a container, the folder through which it calls the scheduler may be there, and is needed after these lines
    keep = '! -name "$(basename -- "${CONTRAILS_CONTAINER:-.}")"'
    delete = f'find "$SCRATCHDIR" -mindepth 1 -maxdepth 1 {keep} -exec rm -rf -- {{}} +'
    return [f'if [ -d "$SCRATCHDIR" ]; then {delete}; fi']
