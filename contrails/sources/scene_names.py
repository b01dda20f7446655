"""The files of each scene, found by patterns of their names, and the lists of scenes that came with the data."""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from contrails.errors import DataError
from contrails.sources.rasters import ENDINGS
from contrails.sources.walk import Found, files_below
from contrails.tables import read_rows

SUBSETS = ("train", "val", "test")
_HEADINGS = {"name", "file", "filename", "file_name", "scene", "image", "id"}
_SHOWN = 3


def find_files(root: Path, pattern: str, bands: Sequence[str]) -> tuple[dict[str, dict[str, Path]], Found]:
    """Return the files that a pattern matches, by scene and band, and other files in their folders and below.

    The band is "" if the pattern has no {band}. Files of other bands, and files that belong to a scene (such as world
    files), are not among the other files.

    Raises:
        DataError: the pattern is invalid, or a scene has a duplicate file or lacks a band.
    """
    if "{scene}" not in pattern or ("{band}" in pattern) != bool(bands and "{band}" in pattern):
        raise DataError(
            f"the pattern '{pattern}': expected {{scene}} in place of the scene's name, and --bands if and only if the "
            "pattern has {band}; correct the pattern, or give --bands"
        )
    matches = _expression(pattern, bands)
    folder = root / pattern.partition("{")[0].rpartition("/")[0]  # contains all files that the pattern can match
    below = files_below(folder, ENDINGS) if folder.is_dir() else Found()
    found: dict[str, dict[str, Path]] = {}
    for path in below.paths:
        if match := matches.fullmatch(path.relative_to(root).as_posix()):
            of_scene = found.setdefault(match["scene"], {})
            band = match.groupdict().get("band", "")
            if band in of_scene:
                raise DataError(
                    f"expected one file of the scene {match['scene']}, found two: {of_scene[band]} and {path}; remove "
                    "one of them"
                )
            of_scene[band] = path
    if "{band}" in pattern:
        for name, of_scene in found.items():
            if missing := [band for band in bands if band not in of_scene]:
                raise DataError(
                    f"the scene {name} lacks the bands {', '.join(missing)} ({pattern} in {root}); add the files, or "
                    "give other --bands"
                )
            found[name] = {band: of_scene[band] for band in bands}
    of_any_band = _expression(pattern, None)
    below.paths[:] = [path for path in below.paths if not of_any_band.fullmatch(path.relative_to(root).as_posix())]
    return found, _besides(found, below)


def _besides(found: Mapping[str, Mapping[str, Path]], below: Found) -> Found:
    """Return the files of `below` that belong to no scene, but are in or below a folder with files of scenes."""
    files = list(chain.from_iterable(of_scene.values() for of_scene in found.values()))
    folders, stems = {path.parent for path in files}, {path.with_suffix("") for path in files}

    def is_near(path: Path) -> bool:
        return not folders.isdisjoint(path.parents)

    unknown = [path for path in below.unknown if path.with_name(path.name.partition(".")[0]) not in stems]
    return Found(list(filter(is_near, below.paths)), below.skipped, list(filter(is_near, unknown)))


def read_filelists(folder: Path, files: Mapping[str, Mapping[str, Path]]) -> dict[str, str]:
    """Return the list (train, val or test) that names each scene; empty if there are no lists.

    Raises:
        DataError: a list names a scene that does not exist, or that is on another list.
    """
    names: dict[str, str] = {}
    for scene, of_scene in files.items():
        names |= {path.name: scene for path in of_scene.values()}
    names |= {scene: scene for scene in files}  # a list can name files or scenes
    found: dict[str, str] = {}
    for subset in SUBSETS:
        path = folder / f"{subset}.csv"
        if not path.is_file():
            continue
        lines = [row[0].strip() for _, row in read_rows(path, "a list of scenes")]
        if lines and lines[0].lower() in _HEADINGS and lines[0] not in names:
            lines = lines[1:]
        if lost := [line for line in lines if line not in names]:
            raise DataError(
                f"{path}: expected names of existing scenes, found {len(lost)} others: {', '.join(lost[:_SHOWN])}; add "
                "these scenes, or remove them from the list"
            )
        for line in lines:
            if found.setdefault(names[line], subset) != subset:
                raise DataError(
                    f"{path}: expected a scene on one list, found {names[line]} in {found[names[line]]}.csv too; keep "
                    "one of the lines"
                )
    return found


def _expression(pattern: str, bands: Sequence[str] | None) -> re.Pattern[str]:
    """Return the regular expression of a pattern; `bands` None matches any band."""
    kinds = {"{scene}": "[^/]+", "{band}": "[^/]+" if bands is None else "|".join(map(re.escape, bands))}
    parts, seen = [], set()
    for part in re.split(r"(\{scene\}|\{band\})", pattern):
        name = part.strip("{}")
        parts.append(
            re.escape(part) if part not in kinds else f"(?P={name})" if part in seen else f"(?P<{name}>{kinds[part]})"
        )
        seen.add(part)
    if not pattern.lower().endswith(ENDINGS):
        parts.append(f"(?i:{'|'.join(map(re.escape, ENDINGS))})")
    return re.compile("".join(parts))
