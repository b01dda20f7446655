"""The origin of a file of predictions, recorded in `<name>.json` beside it with the file's digest.

With it, a repeated command finds that its work is done, and a file of another ensemble or input is never replaced by
mistake.
"""

from pathlib import Path
from typing import Any

from contrails.errors import DataError
from contrails.files import read_hint, sha256, to_json, write_atomic


def note_of(path: Path) -> Path:
    """Return the path of the record beside a file of predictions."""
    return path.with_name(f"{path.name}.json")


def require_noted(path: Path) -> None:
    """Check that a file has a record of its origin, so that it may be a finished file of the same command.

    Raises:
        DataError: it has none.
    """
    if not note_of(path).is_file():
        raise _other(path, f"no {note_of(path).name} beside it names its ensemble and input")


def is_made(path: Path, about: dict[str, Any], *, force: bool) -> bool:
    """Return whether a file exists that was made from `about` and is unchanged.

    Raises:
        DataError: another file exists, and may not be replaced.
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
    """Record the origin of a file that has just been written."""
    write_atomic(note_of(path), to_json({"of": about, "sha256": sha256(path)}))


def _other(path: Path, what: str) -> DataError:
    return DataError(f"{path} exists, and {what}; give another name for the new file, or --force to replace it")
