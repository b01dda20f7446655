"""Sites: where folds run, what a job asks of the scheduler there, and how often a failure is tried again.

Reads `jobs/sites/*.toml` in the current folder and `~/.config/contrails/sites/*.toml`; `local`, this machine, and
`slurm` and `pbs`, its cluster with the cluster's own defaults, are built in. `resolve` turns "as much as there is" into
numbers, which the run then keeps for all its attempts.
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

from contrails.cluster.schedulers.base import scheduler_of
from contrails.cluster.schedulers.devices import require_devices, visible_devices
from contrails.cluster.schedulers.profiles import BUILT_IN, profile_files
from contrails.errors import NodeError, RecipeError, StorageError, choices
from contrails.files import read_toml
from contrails.recipe.base import Section
from contrails.recipe.reading import parse
from contrails.runs.folder import Run

_MEMORY_GB_A_FOLD = 3.0
_SHARE_OF_A_COPY = 0.8
_BUILT_IN = "built in"

THIS_MACHINE = "local"
"""Name of this machine's built-in site, and of its scheduler."""

SchedulerName = Literal["local", "slurm", "pbs"]

Word = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f]+$")]
"""Text for a line of a job's script: quotes can hold anything but the end of the line."""

_OURS = {
    "array", "begin", "chdir", "cpus-per-task", "dependency", "error", "exclude", "export", "gpus-per-node", "input",
    "job-name", "mem", "no-requeue", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "requeue", "signal",
    "time", "wrap",
}  # fmt: skip
"""Arguments that contrails gives itself and relies on."""


_QSUB = {"M", "P", "a", "m", "p"}
"""Options of qsub that a profile may give: mail, project, not before, when to mail, priority."""


class Retries(Section):
    """How often in a row, without a new snapshot between, a job is tried again by itself."""

    walltime: int = Field(3, ge=0, description="it ended before a first snapshot")
    preemption: int = Field(20, ge=0, description="another job took its place")
    node: int = Field(3, ge=0, description="the node failed, or lacks the GPU; the node is avoided then")
    memory: int = Field(2, ge=0, description="killed, probably for memory; asks for half as much again then")
    killed: int = Field(2, ge=0, description="killed with its memory far from full: by somebody, or its node was full")
    gpu_memory: int = Field(1, ge=0, description="the GPU's memory was full; another process may have been on it")
    dataset: int = Field(2, ge=0, description="the dataset vanished while it was mapped, or its disk failed")
    lost: int = Field(2, ge=0, description="it ended and nobody knows why")


class Site(Section):
    """A place where folds run."""

    name: str = Field(description="how --site calls it")
    default: bool = Field(True, description="taken on a machine with its scheduler where no --site is given")
    scheduler: SchedulerName = Field("local", description="who starts the jobs")
    partition: Word | None = Field(None, description="partition or queue; empty: the scheduler's default")
    account: Word | None = Field(None, description="account or project that pays")
    qos: Word | None = Field(None, description="quality of service")
    constraint: Word | None = Field(None, description="features that a node must have")
    walltime_min: int = Field(240, ge=1, description="minutes that a job may run; then it goes on in the next")
    margin_s: int = Field(120, ge=5, description="seconds before that when a job saves and hands over")
    num_gpus: int = Field(0, ge=0, description="GPUs of a job")
    gpu_type: Word | None = Field(None, description="kind of GPU, as the scheduler calls it")
    num_cpus: int = Field(1, ge=1, description="CPU cores of a job")
    memory_gb: float | None = Field(None, gt=0, description="memory of a job; empty: the scheduler's default")
    prologue: tuple[Word, ...] = Field((), description="shell lines that a job runs first, such as module load cuda")
    environment: Path | None = Field(None, description="script that a job sources, such as envs/mycluster.sh")
    resources: dict[str, Word | bool | int] = Field({}, description="PBS: further resources of the select: gpu_mem")
    next_job: Literal["held", "at_warning"] = Field("held", description="PBS: when the job that goes on is submitted")
    scheduler_arguments: dict[str, Word | int | bool] = Field({}, description="further arguments for the scheduler")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    folds_at_a_time: int = Field(0, ge=0, description="folds that train at once on this machine; 0: what it carries")
    num_threads: int = Field(0, ge=0, description="CPU threads a fold; 0: the cores shared out")
    num_ranks: int = Field(1, ge=1, description="processes that train one fold together, one GPU each")
    stage_dir: Path | None = Field(None, description="node-local folder for a copy of the dataset; may be $SCRATCHDIR")
    sync: bool = Field(False, description="follow each fold with a contrails sync of its own")
    on_done: tuple[Word, ...] = Field((), description="command that is told of a finished fold: run and fold follow")
    on_failed: tuple[Word, ...] = Field((), description="the same for a fold that failed and is not tried again")
    retries: Retries = Retries()

    def own_stage_dir(self) -> Path | None:
        """Return `stage_dir` with the variables of this process's environment, such as $SCRATCHDIR, filled in.

        Raises:
            NodeError: the node sets no such variable.
        """
        if self.stage_dir is None:
            return None
        path = os.path.expandvars(self.stage_dir)
        if "$" in path:
            raise NodeError(
                f"stage_dir = '{self.stage_dir}' of the site {self.name}: the node does not set this variable; ask for "
                "scratch space in the profile (on PBS scratch_local in [resources]), or leave stage_dir out"
            )
        return Path(path)

    def with_files(self) -> "Site":
        """Return the profile with the whole path of its `environment`, after a look at the files that it names.

        Raises:
            RecipeError: that script is not there, or this machine trains and has no command of `on_done`, `on_failed`.
        """
        for event, command in (("on_done", self.on_done), ("on_failed", self.on_failed)):
            if scheduler_of(self).CAPABILITIES.runs_here and command and shutil.which(command[0]) is None:
                raise RecipeError(
                    f"{event} of the site {self.name}: expected the path or name of a command, found {command[0]}, "
                    "which this machine does not have or may not run; correct the profile"
                )
        if self.environment is None:
            return self
        if not self.environment.is_file():
            raise RecipeError(
                f"environment of the site {self.name}: expected a script at {self.environment.absolute()}, found none; "
                "give the whole path in the profile, or go to the folder that it is relative to"
            )
        return self.model_copy(update={"environment": self.environment.absolute()})

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
    def _margin_leaves_time(self) -> Self:
        if self.margin_s >= 60 * self.walltime_min:
            raise ValueError(
                f"margin_s = {self.margin_s} leaves nothing of walltime_min = {self.walltime_min}: "
                f"expected less than {60 * self.walltime_min} seconds"
            )
        return self

    @model_validator(mode="after")
    def _arguments_fit(self) -> Self:
        """Slurm's arguments have long names, those of qsub one letter."""
        if self.scheduler == "pbs":
            wrong = [name for name in self.scheduler_arguments if name not in _QSUB]
            foreign = [name for name in ("qos", "constraint", "gpu_type") if getattr(self, name) is not None]
            if wrong:
                raise ValueError(f"scheduler_arguments: '{wrong[0]}' is none of qsub's {', '.join(sorted(_QSUB))}")
            if foreign:
                raise ValueError(f"{foreign[0]} is Slurm's; say it in [resources], as the nodes' resources are called")
            return self
        if self.resources:
            raise ValueError("resources: only PBS has them; see partition, constraint and gpu_type")
        self._require_not_ours(self.scheduler_arguments)
        return self

    @staticmethod
    def _require_not_ours(arguments: dict[str, str | int | bool]) -> None:
        for name in arguments:
            if not name.replace("-", "").isalnum() or not name.islower() or name.startswith("-"):
                raise ValueError(f"'{name}': expected the long name of an argument without dashes, such as reservation")
            if name in _OURS:
                raise ValueError(f"'{name}' is given by contrails itself; see the other keys of a site profile")


@dataclass(frozen=True)
class Profile:
    """A site with where it is defined; one whose profile is wrong has a problem in its place."""

    where: str
    scheduler: str | None
    """None where the profile does not even say that."""
    is_default: bool = True
    site: Site | None = None
    problem: str = ""


def all_sites() -> dict[str, Profile]:
    """Return every site by name; a nearer definition of a name wins, and a wrong one is in nobody's way."""
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
    """Return a site by name; without one, the one that this machine has.

    Raises:
        RecipeError: no site has this name, or its profile is wrong.
    """
    sites = all_sites()
    asked, name = name, name or default_site(sites)
    if name not in sites:
        raise RecipeError(f"--site {name}: no profile of this name in jobs/sites; {choices(name, sites)}")
    found = sites[name]
    if found.site is None:
        others = [other for other, profile in sites.items() if profile.site is not None]
        raise RecipeError(found.problem if asked else f"{found.problem}; mend it, or choose --site {'|'.join(others)}")
    return found.site


def site_of(run: Run) -> Site:
    """Return the site that a run was made for."""
    return parse(Site, read_toml(run.toml, "a run").get("site", {}), str(run.toml))


def default_site(sites: Mapping[str, Profile]) -> str:
    """Return the name of the site that is used where none is given.

    On a cluster that is the first profile by name that is or may be for its scheduler, or else the built-in one.
    """
    scheduler = next((name for name, here in found_schedulers().items() if here), "local")
    own = [
        name
        for name, profile in sites.items()
        if profile.scheduler in (scheduler, None) and profile.is_default and profile.where != _BUILT_IN
    ]
    return min(own) if own and scheduler != "local" else scheduler


def found_schedulers() -> dict[str, bool]:
    """Return of each scheduler whether this machine belongs to such a cluster."""
    return {"slurm": has_slurm(), "pbs": has_pbs()}


def has_pbs() -> bool:
    """Return whether this machine belongs to a PBS cluster; Grid Engine has a qsub as well, but no pbsnodes."""
    return shutil.which("qsub") is not None and shutil.which("pbsnodes") is not None


def has_slurm() -> bool:
    """Return whether this machine belongs to a Slurm cluster, also while its controller does not answer."""
    if shutil.which("sbatch") is None or shutil.which("scontrol") is None:
        return False
    try:
        answer = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return True
    return "Slurmctld" in answer.stdout  # the client tools alone know no controller


def resolve(site: Site, num_folds: int) -> Site:
    """Decide device, folds at a time and threads: from what this machine has, or from what a job asks for.

    On this machine's GPUs `folds_at_a_time = 0` stays: a job has as many as its shell may use when it is submitted.

    Raises:
        NodeError: CUDA_VISIBLE_DEVICES is wrong, or a GPU is asked for and there is none.
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
    """Return whether a job with this memory can have a private copy of a dataset (`data.residency = "ram"`)."""
    return dataset.stat().st_size / 1e9 < _SHARE_OF_A_COPY * memory_gb


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
