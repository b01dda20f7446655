"""Folders of raw files: what lies in them, at any depth, for every layout.

Links to folders are followed, as data sets are often put together of links; one that leads back to a folder above it is
an error, and so is one that leads nowhere. What desktops, notebooks and archives leave behind is skipped, and named.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from contrails.errors import DataError
from contrails.files import storage

_LEFT_BEHIND = {"__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir"}
"""Names that are no data, besides all that begin with a dot."""

_SHOWN = 3


@dataclass(frozen=True)
class Found:
    """Sorted paths below a folder, and what was skipped as no data or as of no known ending."""

    paths: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    unknown: list[Path] = field(default_factory=list)

    def warnings(self) -> tuple[str, ...]:
        """Return what to tell about the names that were skipped."""
        told = {
            "skipped, for they are no data": self.skipped,
            "left out, for their endings are not known": self.unknown,
        }
        return tuple(f"{what}: {some(paths)}" for what, paths in told.items() if paths)


def files_below(folder: Path, endings: Sequence[str]) -> Found:
    """Return the files of a folder and of all folders in it whose names end on one of `endings`, in any case.

    Raises:
        DataError: a link leads back to a folder above it, or to nothing.
        StorageError: a folder may not be read.
    """
    found = Found()
    _walk(folder, (), tuple(endings), found)
    found.paths.sort()
    return found


def folders_in(folder: Path) -> Found:
    """Return the folders that lie in a folder; raises as `files_below`."""
    found = Found()
    found.paths.extend(path for path, is_folder in _entries(folder, found) if is_folder)
    return found


def _walk(folder: Path, above: tuple[tuple[int, int], ...], endings: tuple[str, ...], found: Found) -> None:
    with storage(folder, "read"):
        status = folder.stat()
    this = (status.st_dev, status.st_ino)
    if this in above:
        raise DataError(f"{folder} is a link that leads back to {folder.resolve()}, in which it lies; remove the link")
    for path, is_folder in _entries(folder, found):
        if is_folder:
            _walk(path, (*above, this), endings, found)
        elif path.name.lower().endswith(endings):
            found.paths.append(path)
        else:
            found.unknown.append(path)


def _entries(folder: Path, found: Found) -> list[tuple[Path, bool]]:
    """Return what lies in a folder, sorted, and whether it is a folder; what is no data is noted as skipped."""
    with storage(folder, "read"), os.scandir(folder) as entries:  # knows what is a link and a folder without asking
        listed = sorted(
            (entry.name, is_link := entry.is_symlink(), not is_link and entry.is_dir()) for entry in entries
        )
    kept = []
    for name, is_link, is_folder in listed:
        path = folder / name
        if name.startswith(".") or name in _LEFT_BEHIND:
            found.skipped.append(path)
        elif is_link and not path.exists():
            raise DataError(f"{path} is a link to {path.readlink()}, which is not there; mend the link, or remove it")
        else:
            kept.append((path, path.is_dir() if is_link else is_folder))
    return kept


def some(paths: Sequence[Path]) -> str:
    """Return the first of paths for a message, and how many more there are."""
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(map(str, paths[:_SHOWN])) + more
