"""What a file of predictions is of: `<name>.json` beside it says so, with the file's digest.

The same command finds its work done by it, and what is of another ensemble or input is never replaced unasked.
"""

from pathlib import Path
from typing import Any

from contrails.errors import DataError
from contrails.files import read_hint, sha256, to_json, write_atomic


def note_of(path: Path) -> Path:
    """Return the file that says what a file of predictions is of."""
    return path.with_name(f"{path.name}.json")


def require_noted(path: Path) -> None:
    """Check that a file may be a finished one of the same command: something says what it is of.

    Raises:
        DataError: nothing does.
    """
    if not note_of(path).is_file():
        raise _other(path, f"nothing beside it ({note_of(path).name}) says what it is of")


def is_made(path: Path, about: dict[str, Any], *, force: bool) -> bool:
    """Return whether a file is there already and is, to the byte, what was made of `about`.

    Raises:
        DataError: another one is there, which is not to be replaced.
    """
    if not path.exists():
        return False
    found = read_hint(note_of(path))
    is_same = to_json(found.get("of")) == to_json(about)
    if is_same and found.get("sha256") == sha256(path):
        return True
    if force:
        return False
    raise _other(path, "was changed after it was written" if is_same else "is of another ensemble, input or option")


def note(path: Path, about: dict[str, Any]) -> None:
    """Say what a file is of that has just been written."""
    write_atomic(note_of(path), to_json({"of": about, "sha256": sha256(path)}))


def _other(path: Path, what: str) -> DataError:
    return DataError(
        f"{path} exists, and {what}; give another name for what is predicted now, or --force to replace it"
    )
