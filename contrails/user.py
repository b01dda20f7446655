"""Name and home folder of the user, also in containers whose system does not know the user's number."""

import getpass
import os
from pathlib import Path


def user_name() -> str:
    """Return the name of the user, or the user id if there is no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def home() -> Path:
    """Return the user's home folder, or the root folder if there is none, as in containers."""
    try:
        return Path.home()
    except RuntimeError:
        return Path("/")
