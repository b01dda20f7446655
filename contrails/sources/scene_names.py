"""Which files are of which scene, by patterns of their names, and which scenes are on the lists that came with them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from contrails.errors import DataError
from contrails.sources.rasters import ENDINGS
from contrails.sources.walk import Found, files_below
from contrails.tables import read_rows

SUBSETS = ("train", "val", "test")
_HEADINGS = {"name", "file", "filename", "file_name", "scene", "image", "id"}
_SHOWN = 3


def find_files(root: Path, pattern: str, bands: Sequence[str]) -> tuple[dict[str, dict[str, Path]], Found]:
    """Return the files that a pattern matches, by scene and band, and what else lies in their folders and below.

    The band is "" where the pattern has none. Files of other bands are not told, nor those that go with a scene.

    Raises:
        DataError: the pattern is none, or a scene is there twice or lacks a band.
    """
    if "{scene}" not in pattern or ("{band}" in pattern) != bool(bands and "{band}" in pattern):
        raise DataError(
            f"the pattern '{pattern}': expected {{scene}} where the name of the scene stands, and --bands with a "
            "pattern that holds {band}"
        )
    matches = _expression(pattern, bands)
    folder = root / pattern.partition("{")[0].rpartition("/")[0]  # all that the pattern matches lies there
    below = files_below(folder, ENDINGS) if folder.is_dir() else Found()
    found: dict[str, dict[str, Path]] = {}
    for path in below.paths:
        if match := matches.fullmatch(path.relative_to(root).as_posix()):
            of_scene = found.setdefault(match["scene"], {})
            band = match.groupdict().get("band", "")
            if band in of_scene:
                raise DataError(
                    f"the scene {match['scene']} is there twice: {of_scene[band]} and {path}; remove one of them"
                )
            of_scene[band] = path
    if "{band}" in pattern:
        for name, of_scene in found.items():
            if missing := [band for band in bands if band not in of_scene]:
                raise DataError(f"the scene {name} lacks the bands {', '.join(missing)} ({pattern} in {root})")
            found[name] = {band: of_scene[band] for band in bands}
    of_any_band = _expression(pattern, None)
    below.paths[:] = [path for path in below.paths if not of_any_band.fullmatch(path.relative_to(root).as_posix())]
    return found, _besides(found, below)


def _besides(found: Mapping[str, Mapping[str, Path]], below: Found) -> Found:
    """Return what of all that was found, but for the files of scenes, lies in folders of such files or below."""
    files = [path for of_scene in found.values() for path in of_scene.values()]
    folders, stems = {path.parent for path in files}, {path.with_suffix("") for path in files}

    def is_near(path: Path) -> bool:
        return not folders.isdisjoint(path.parents)

    unknown = [path for path in below.unknown if path.with_name(path.name.partition(".")[0]) not in stems]
    return Found(list(filter(is_near, below.paths)), below.skipped, list(filter(is_near, unknown)))


def read_filelists(folder: Path, files: Mapping[str, Mapping[str, Path]]) -> dict[str, str]:
    """Return the subset of each scene on the file lists; none where there are no lists.

    Raises:
        DataError: a list names a scene that is not there, or one that is on another list.
    """
    names = {path.name: scene for scene, of_scene in files.items() for path in of_scene.values()}
    names |= {scene: scene for scene in files}
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
                f"{path} names {len(lost)} scenes that are not there: {', '.join(lost[:_SHOWN])}; "
                "get them, or take them off the list"
            )
        for line in lines:
            if found.setdefault(names[line], subset) != subset:
                raise DataError(f"{path}: the scene {names[line]} is in {found[names[line]]}.csv as well; keep one")
    return found


def _expression(pattern: str, bands: Sequence[str] | None) -> re.Pattern[str]:
    """Return what the names of files match; None stands for any bands."""
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
