"""Who runs this, also where the system knows no such user, as in a container that was started for a number."""

import getpass
import os
from pathlib import Path


def user_name() -> str:
    """Return the name of the user, or the number where there is no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def home() -> Path:
    """Return the user's folder, or the root where there is none, as containers set it."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")
