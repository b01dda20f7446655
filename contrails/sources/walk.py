"""Listing of folders with raw files, at any depth, for every layout.

Links to folders are followed, as datasets are often assembled from links. A link to a folder above it and a broken link
are errors. Files left by desktops, notebooks and archives are skipped and reported.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contrails.errors import DataError
from contrails.files import storage

_LEFT_BEHIND = {"__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir"}
"""Names of files and folders to skip, in addition to names that begin with a dot."""

_SHOWN = 3


@dataclass(frozen=True)
class Found:
    """Sorted paths below a folder, the skipped paths, and the paths with an unknown ending."""

    paths: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)

    def warnings(self) -> tuple[str, ...]:
        """Return warnings about the paths that were skipped or have an unknown ending."""
        told = {
            "skipped, because they are no data": self.skipped,
            "left out, because their endings are unknown": self.unknown,
        }
        return tuple(f"{what}: {some(paths)}" for what, paths in told.items() if paths)


def files_below(folder: Path, endings: Sequence[str]) -> Found:
    """Return the files below a folder whose names end with one of `endings`, in upper or lower case.

    Raises:
        DataError: a link leads to a folder above it, or is broken.
        StorageError: a folder may not be read.
    """
    found = Found()
    _walk(folder, (), tuple(endings), found)
    found.paths.sort()
    return found


def folders_in(folder: Path) -> Found:
    """Return the folders directly in a folder; raises as `files_below`."""
    found = Found()
    found.paths.extend(path for path, is_folder in _entries(folder, found) if is_folder)
    return found


def _walk(folder: Path, above: tuple[tuple[int, int], ...], endings: tuple[str, ...], found: Found) -> None:
    with storage(folder, "read"):
        status = folder.stat()
    this = (status.st_dev, status.st_ino)
    if this in above:
        raise DataError(f"{folder} is a link to {folder.resolve()}, a folder that contains it; remove the link")
    for path, is_folder in _entries(folder, found):
        if is_folder:
            _walk(path, (*above, this), endings, found)
        elif path.name.lower().endswith(endings):
            found.paths.append(path)
        else:
            found.unknown.append(path)


def _entries(folder: Path, found: Found) -> list[tuple[Path, bool]]:
    """Return the entries of a folder, sorted, each with whether it is a folder; `found` gets the skipped ones."""
    with storage(folder, "read"), os.scandir(folder) as entries:  # gives the types of entries without further calls
        listed = sorted(
            (entry.name, is_link := entry.is_symlink(), not is_link and entry.is_dir()) for entry in entries
        )
    kept = []
    for name, is_link, is_folder in listed:
        path = folder / name
        if name.startswith(".") or name in _LEFT_BEHIND:
            found.skipped.append(path)
        elif is_link and not path.exists():
            raise DataError(f"{path} is a link to {path.readlink()}, which does not exist; correct or remove the link")
        else:
            kept.append((path, path.is_dir() if is_link else is_folder))
    return kept


def some(paths: Sequence[Path]) -> str:
    """Return the first paths and the number of further ones, for a message."""
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(map(str, paths[:_SHOWN])) + more
