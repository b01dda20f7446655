"""Sites: where folds run and how many at a time.

Reads `jobs/sites/*.toml` in the current folder and `~/.config/contrails/sites/*.toml`; `local`, this machine, is
built in.
`resolve` turns "as much as there is" into numbers, which the run then keeps for all its attempts.
"""

import os
import subprocess
from pathlib import Path
from typing import Literal

import psutil
from pydantic import Field

from contrails.config import Section, parse, read_toml
from contrails.errors import RecipeError, choices

_MEMORY_GB_A_FOLD = 3.0


class Site(Section):
    """A place where folds run."""

    name: str = Field(description="how --site calls it")
    scheduler: Literal["local"] = Field("local", description="who starts the jobs")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one")
    folds_at_a_time: int = Field(0, ge=0, description="folds that train at once on this machine; 0: what it carries")
    num_threads: int = Field(0, ge=0, description="CPU threads a fold; 0: the cores shared out")
    num_ranks: int = Field(1, ge=1, description="processes that train one fold together, one GPU each")
    stage_dir: Path | None = Field(None, description="node-local folder that keeps a copy of the dataset")
    sync: bool = Field(False, description="follow each fold with a `contrails sync` of its own")


def all_sites() -> dict[str, tuple[Site, str]]:
    """Return every site with where it is defined; a nearer definition of a name wins.

    Raises:
        RecipeError: a profile is wrong.
    """
    found = {"local": (Site(name="local"), "built in")}
    for folder in (Path.home() / ".config/contrails/sites", Path("jobs/sites")):
        for path in sorted(folder.glob("*.toml")):
            values = {"name": path.stem} | read_toml(path, "a site profile")
            found[path.stem] = (parse(Site, values, str(path)), str(path))
    return found


def find_site(name: str | None) -> Site:
    """Return a site by name; without one, the one that this machine has.

    Raises:
        RecipeError: no site has this name.
    """
    sites = all_sites()
    name = name or default_site()
    if name not in sites:
        raise RecipeError(f"--site {name}: no profile of this name in jobs/sites; {choices(name, sites)}")
    return sites[name][0]


def default_site() -> str:
    """Return the name of the site that is used where none is given."""
    return "local"


def resolve(site: Site, num_folds: int) -> Site:
    """Decide device, folds at a time and threads from what this machine has."""
    gpus = 0 if site.device == "cpu" else num_gpus()
    device = site.device if site.device != "auto" else ("cuda" if gpus else "cpu")
    cores = num_cores()
    in_memory = int(psutil.virtual_memory().available / 1e9 / _MEMORY_GB_A_FOLD)
    carries = (gpus if device == "cuda" else min(cores, in_memory)) // site.num_ranks
    at_a_time = site.folds_at_a_time or max(1, min(num_folds, carries))
    threads = site.num_threads or max(1, cores // at_a_time)
    return site.model_copy(update={"device": device, "folds_at_a_time": at_a_time, "num_threads": threads})


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def num_gpus() -> int:
    """Return the GPUs that the driver lists, without importing torch; 0 without a driver."""
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0
