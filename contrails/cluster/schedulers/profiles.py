"""The files of site profiles, and the built-in sites that need none."""

from pathlib import Path
from typing import Literal

from contrails.user import home

BUILT_IN: tuple[Literal["local", "slurm", "pbs"], ...] = ("local", "slurm", "pbs")
"""Each is the scheduler of the same name with its defaults."""


def profile_files() -> list[Path]:
    """Return the profile files; of several with the same name, the last one in the list is used."""
    folders = (home() / ".config/contrails/sites", Path("jobs/sites"))
    return [path for folder in folders for path in sorted(folder.glob("*.toml"))]
