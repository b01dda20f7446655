"""Site profiles: where folds run, what a job requests from the scheduler, and how often failures are retried.

Reads `jobs/sites/*.toml` in the current folder and `~/.config/contrails/sites/*.toml`. Built in are `local` (this
machine), and `slurm` and `pbs` (the cluster that this machine belongs to, with default settings). `resolve` replaces
automatic values by numbers, which the run keeps for all its attempts.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import psutil
from pydantic import Field, StringConstraints, field_validator, model_validator

from contrails.cluster.environment import read_archive
from contrails.cluster.schedulers.arguments import require_for_qsub, require_for_sbatch
from contrails.cluster.schedulers.base import scheduler_of
from contrails.cluster.schedulers.containers import require_image, require_runtime
from contrails.cluster.schedulers.devices import require_devices, visible_devices
from contrails.cluster.schedulers.profiles import BUILT_IN, profile_files
from contrails.errors import ClusterError, NodeError, RecipeError, StorageError, choices
from contrails.files import read_toml
from contrails.recipe.base import Section
from contrails.recipe.reading import parse
from contrails.runs.folder import Run

_MEMORY_GB_A_FOLD = 3.0
_SHARE_OF_A_COPY = 0.8
_BUILT_IN = "built in"

THIS_MACHINE = "local"
"""Name of the built-in site of this machine, and of its scheduler."""

SchedulerName = Literal["local", "slurm", "pbs"]

Word = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$")]
"""Text for one line of a job's script; quoting can protect everything but a line break."""


class Retries(Section):
    """How often in a row, without a new snapshot in between, an ended job is retried automatically."""

    walltime: int = Field(3, ge=0, description="retries after the walltime ended before a first snapshot")
    preemption: int = Field(20, ge=0, description="retries after a preemption")
    node: int = Field(3, ge=0, description="retries after the node failed or lacked the GPU; the node is avoided")
    memory: int = Field(2, ge=0, description="retries after a kill for memory, with half as much memory again")
    killed: int = Field(2, ge=0, description="retries after a kill while its memory was far from full")
    gpu_memory: int = Field(1, ge=0, description="retries after the GPU's memory was full; another process may use it")
    dataset: int = Field(2, ge=0, description="retries after the mapped dataset vanished or its disk failed")
    lost: int = Field(2, ge=0, description="retries after an end of unknown cause")


class Site(Section):
    """A site profile: where folds run and what their jobs request."""

    name: str = Field(description="name of the site, as given to --site")
    default: bool = Field(True, description="whether to use it without --site on a machine with its scheduler")
    scheduler: SchedulerName = Field("local", description="what starts the jobs")
    partition: Word | None = Field(None, description="partition or queue; empty: the scheduler's default")
    account: Word | None = Field(None, description="account or project that pays")
    qos: Word | None = Field(None, description="quality of service")
    constraint: Word | None = Field(None, description="features that a node must have")
    walltime_min: int = Field(240, ge=1, description="minutes that a job may run; the next job continues")
    margin_s: int = Field(120, ge=5, description="seconds before the walltime at which a job saves and hands over")
    num_gpus: int = Field(0, ge=0, description="GPUs per job, on each of its nodes")
    gpu_type: Word | None = Field(None, description="type of GPU, as the scheduler calls it")
    num_cpus: int = Field(1, ge=1, description="CPU cores per job, on each of its nodes")
    memory_gb: float | None = Field(None, gt=0, description="memory per job and node; empty: the scheduler's default")
    prologue: tuple[Word, ...] = Field((), description="shell lines that a job runs first, such as module load cuda")
    environment: Path | None = Field(None, description="script that a job sources, such as envs/mycluster.sh")
    environment_archive: Path | None = Field(None, description="archive of envs/pack, unpacked once per node")
    container: Word | None = Field(None, description="image that jobs run in: a path, or a reference such as docker://")
    container_runtime: Word = Field(
        "apptainer", description="apptainer, singularity, charliecloud, podman or a command"
    )
    container_binds: tuple[Word, ...] = Field((), description="more folders that jobs in the container see")
    resources: dict[str, Word | bool | int] = Field({}, description="PBS: more resources of select, such as gpu_mem")
    next_job: Literal["held", "at_warning"] = Field("held", description="PBS: when the next job is submitted")
    scheduler_arguments: dict[str, Word | int | bool] = Field({}, description="more arguments for the scheduler")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    folds_at_a_time: int = Field(0, ge=0, description="folds that train at once on this machine; 0: as many as fit")
    num_threads: int = Field(0, ge=0, description="CPU threads per fold; 0: the cores divided by the folds")
    num_ranks: int = Field(1, ge=1, description="processes that train one fold together, one GPU each")
    mps: bool = Field(False, description="whether folds of a job that share a GPU use NVIDIA MPS")
    num_nodes: int = Field(1, ge=1, description="Slurm: nodes that the ranks of a fold are spread over evenly")
    stage_dir: Path | None = Field(None, description="node-local folder for a copy of the dataset; may be $SCRATCHDIR")
    sync: bool = Field(False, description="whether each fold starts its own contrails sync --follow")
    on_done: tuple[Word, ...] = Field((), description="command run when a fold finishes, with run and fold appended")
    on_failed: tuple[Word, ...] = Field((), description="the same for a fold that failed and is not retried")
    retries: Retries = Retries()

    def own_stage_dir(self) -> Path | None:
        """Return `stage_dir` with environment variables such as $SCRATCHDIR replaced.

        Raises:
            NodeError: the node does not set such a variable.
        """
        if self.stage_dir is None:
            return None
        path = os.path.expandvars(self.stage_dir)
        if "$" in path:
            raise NodeError(
                f"stage_dir = '{self.stage_dir}' of the site {self.name}: this node does not set the variable; request "
                "scratch space in the profile (on PBS scratch_local in [resources]), or leave stage_dir out"
            )
        return Path(path)

    def with_files(self) -> "Site":
        """Return the profile with absolute paths of its environment and container, after checking the files it names.

        Raises:
            RecipeError: the script or the archive of the environment, or the container, is missing; or, if this machine
                trains, a command of `on_done` or `on_failed` is.
        """
        for event, command in (("on_done", self.on_done), ("on_failed", self.on_failed)):
            if scheduler_of(self).CAPABILITIES.runs_here and command and shutil.which(command[0]) is None:
                raise RecipeError(
                    f"{event} of the site {self.name}: expected a command or its path, found {command[0]}, which this "
                    "machine does not have or may not run; correct the profile"
                )
        archive = None if self.environment_archive is None else read_archive(self.environment_archive.absolute()).path
        site = self.model_copy(update={"environment_archive": archive, "container": require_image(self)})
        if self.environment is None:
            return site
        if not self.environment.is_file():
            raise RecipeError(
                f"environment of the site {self.name}: expected a script at {self.environment.absolute()}, found none; "
                "give an absolute path in the profile, or run from the folder that it is relative to"
            )
        return site.model_copy(update={"environment": self.environment.absolute()})

    @field_validator("resources")
    @classmethod
    def _capability(cls, resources: dict[str, str | bool | int]) -> dict[str, str | bool | int]:
        for name in resources:
            if not name.isidentifier():
                raise ValueError(f"'{name}': expected the name of a resource, such as gpu_mem")
        for one in str(resources.get("gpu_cap", "sm_75")).split(","):
            if not re.fullmatch(r"(compute|sm)_\d+", one):
                raise ValueError(f"gpu_cap '{one}': expected compute_75 or sm_75, with commas for alternatives")
        return resources

    @model_validator(mode="after")
    def _archive_has_folder(self) -> Self:
        if self.environment_archive is not None and self.stage_dir is None:
            raise ValueError("environment_archive needs stage_dir, the node-local folder in which jobs unpack it")
        return self

    @model_validator(mode="after")
    def _container_can_run(self) -> Self:
        if self.container is None:
            return self
        if scheduler_of(self).CAPABILITIES.runs_here:
            raise ValueError(
                "container: for jobs of Slurm and PBS; on this machine, start contrails itself in the container"
            )
        if self.environment_archive is not None:
            raise ValueError(
                "container and environment_archive exclude each other: an image has its own environment; leave one of "
                "them out"
            )
        require_runtime(self.container_runtime)
        for path in self.container_binds:
            if not path.startswith("/") or ":" in path or "," in path:
                raise ValueError(f"container_binds '{path}': expected an absolute path without colon and comma")
        return self

    @model_validator(mode="after")
    def _margin_leaves_time(self) -> Self:
        if self.margin_s >= 60 * self.walltime_min:
            raise ValueError(
                f"margin_s = {self.margin_s} leaves no time within walltime_min = {self.walltime_min}: "
                f"expected less than {60 * self.walltime_min} seconds"
            )
        return self

    @model_validator(mode="after")
    def _nodes_have_ranks(self) -> Self:
        if self.num_nodes > 1 and self.scheduler != "slurm":
            raise ValueError(
                f"num_nodes = {self.num_nodes}: expected 1 with scheduler = '{self.scheduler}', since a fold can train "
                "on several nodes on Slurm only; leave the key out"
            )
        self.ranks_per_node(self.num_ranks)
        return self

    def ranks_per_node(self, num_ranks: int) -> int:
        """Return how many of a fold's ranks each node has.

        Raises:
            ValueError: the nodes would not have equally many, or a node has fewer GPUs.
        """
        if num_ranks % self.num_nodes:
            raise ValueError(
                f"num_nodes = {self.num_nodes}: expected a number that divides num_ranks = {num_ranks}, so that each "
                "node has equally many ranks; change one of them"
            )
        ranks = num_ranks // self.num_nodes
        if self.num_nodes > 1 and self.device != "cpu" and 0 < self.num_gpus < ranks:
            raise ValueError(
                f"num_gpus = {self.num_gpus}: expected at least {ranks} per node, for num_ranks = {num_ranks} on "
                f"num_nodes = {self.num_nodes}; raise num_gpus, or lower num_ranks"
            )
        return ranks

    @model_validator(mode="after")
    def _arguments_fit(self) -> Self:
        if self.scheduler == "pbs":
            foreign = [name for name in ("qos", "constraint", "gpu_type") if getattr(self, name) is not None]
            require_for_qsub(self.scheduler_arguments)
            if foreign:
                raise ValueError(f"{foreign[0]} is for Slurm only; on PBS set the resource of the nodes in [resources]")
            return self
        if self.resources:
            raise ValueError("resources: for PBS only; on Slurm set partition, constraint and gpu_type")
        require_for_sbatch(self.scheduler_arguments)
        return self


@dataclass(frozen=True)
class Profile:
    """A site and the file that defines it; an invalid profile has a problem instead of a site."""

    where: str
    scheduler: str | None
    """None if the profile is invalid and names no known scheduler."""
    is_default: bool = True
    site: Site | None = None
    problem: str = ""


def all_sites() -> dict[str, Profile]:
    """Return every site by name; an invalid profile does not affect the others.

    Of several with one name, that of the current folder precedes that of the user, which precedes the built-in one.
    """
    built_in = [Site(name=name, scheduler=name) for name in BUILT_IN]
    found = {site.name: Profile(_BUILT_IN, site.scheduler, site=site) for site in built_in}
    return found | {path.stem: _profile(path) for path in profile_files()}


def _profile(path: Path) -> Profile:
    values: dict[str, Any] = {"scheduler": None}
    try:
        values = {"name": path.stem, "scheduler": "local"} | read_toml(path, "a site profile")
        site = parse(Site, values, str(path))
    except (RecipeError, StorageError) as error:
        scheduler = values["scheduler"] if values["scheduler"] in get_args(SchedulerName) else None
        return Profile(str(path), scheduler, values.get("default") is not False, problem=str(error))
    return Profile(str(path), site.scheduler, site.default, site)


def find_site(name: str | None) -> Site:
    """Return a site by name; without a name, the default site of this machine.

    Raises:
        RecipeError: no site has this name, or its profile is invalid.
    """
    sites = all_sites()
    asked, name = name, name or default_site(sites)
    if name not in sites:
        raise RecipeError(f"--site {name}: expected the name of a site; {choices(name, sites)}")
    found = sites[name]
    if found.site is None:
        others = [other for other, profile in sites.items() if profile.site is not None]
        raise RecipeError(found.problem if asked else f"{found.problem}; fix it, or choose --site {'|'.join(others)}")
    return found.site


def site_of(run: Run) -> Site:
    """Return the site that a run was made for."""
    return parse(Site, read_toml(run.toml, "a run").get("site", {}), str(run.toml))


def default_site(sites: Mapping[str, Profile]) -> str:
    """Return the name of the default site.

    On a cluster it is the first by name of the profiles for its scheduler, without those with `default = false`; a
    profile that names no known scheduler may be one of them. If there is none, it is the built-in site.
    """
    scheduler = next((name for name, here in found_schedulers().items() if here), "local")
    own = [
        name
        for name, profile in sites.items()
        if profile.scheduler in (scheduler, None) and profile.is_default and profile.where != _BUILT_IN
    ]
    return min(own) if own and scheduler != "local" else scheduler


def found_schedulers() -> dict[str, bool]:
    """Return for each scheduler whether this machine belongs to such a cluster."""
    return {"slurm": has_slurm(), "pbs": has_pbs()}


def has_pbs() -> bool:
    """Return whether this machine belongs to a PBS cluster; Grid Engine has qsub too, but not pbsnodes."""
    return shutil.which("qsub") is not None and shutil.which("pbsnodes") is not None


def has_slurm() -> bool:
    """Return whether this machine belongs to a Slurm cluster, even if its controller does not answer."""
    if shutil.which("sbatch") is None or shutil.which("scontrol") is None:
        return False
    try:
        answer = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return True
    return "Slurmctld" in answer.stdout  # absent if only the client tools are installed


def require_scheduler(site: Site) -> None:
    """Check that jobs of a site can be submitted from this machine.

    Raises:
        ClusterError: the command that submits them is missing.
    """
    command = {"slurm": "sbatch", "pbs": "qsub"}.get(site.scheduler)
    if command is not None and shutil.which(command) is None:
        raise ClusterError(
            f"site {site.name}: expected the command {command} of its scheduler ({site.scheduler}), found none on this "
            "machine; run this on a login node of the cluster, load the scheduler's module, or choose another --site "
            "(`contrails sites` lists them)"
        )


def resolve(site: Site, num_folds: int) -> Site:
    """Return the site with device, folds at a time and threads as numbers, from this machine or a job's request.

    On this machine's GPUs, `folds_at_a_time = 0` stays: it means the GPUs that the shell may use at each submission.

    Raises:
        NodeError: CUDA_VISIBLE_DEVICES is invalid, or a GPU is requested and there is none.
    """
    runs_here = scheduler_of(site).CAPABILITIES.runs_here
    if runs_here:
        gpus = 0 if site.device == "cpu" else len(visible_devices())
        cores = num_cores()
    else:
        gpus, cores = site.num_gpus, site.num_cpus
    device = site.device if site.device != "auto" else ("cuda" if gpus else "cpu")
    at_a_time = site.folds_at_a_time
    if not at_a_time:
        carried = _carries(device, gpus, cores, num_folds * site.num_ranks) // site.num_ranks
        at_a_time = max(1, carried) if runs_here else 1
    threads = site.num_threads or max(1, cores // at_a_time)
    if runs_here and device == "cuda":
        require_devices(site.num_ranks)
        at_a_time = site.folds_at_a_time
    return site.model_copy(update={"device": device, "folds_at_a_time": at_a_time, "num_threads": threads})


def _carries(device: str, gpus: int, cores: int, num_folds: int) -> int:
    in_memory = int(psutil.virtual_memory().available / 1e9 / _MEMORY_GB_A_FOLD)
    return max(1, min(num_folds, gpus if device == "cuda" else min(cores, in_memory)))


def holds_copy(memory_gb: float, dataset: Path) -> bool:
    """Return whether a job with this memory can hold a private copy of a dataset (`data.residency = "ram"`)."""
    return dataset.stat().st_size / 1e9 < _SHARE_OF_A_COPY * memory_gb


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
