"""Where the profiles of sites lie, and which sites need none."""

from pathlib import Path
from typing import Literal

from contrails.user import home

BUILT_IN: tuple[Literal["local", "slurm", "pbs"], ...] = ("local", "slurm", "pbs")
"""Each is the scheduler of this name with its own defaults."""


def profile_files() -> list[Path]:
    """Return the profiles' files by name of the site; of one name the last counts, which is the nearest."""
    folders = (home() / ".config/contrails/sites", Path("jobs/sites"))
    return [path for folder in folders for path in sorted(folder.glob("*.toml"))]
