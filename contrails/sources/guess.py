"""A guess of the layout of a folder of raw data, for hints in errors."""

from collections.abc import Iterable
from pathlib import Path

from contrails.sources.rasters import ENDINGS

_SCENES = ("scenes", "images", "imgs", "image", "img", "data")
_MASKS = ("masks", "labels", "mask", "label", "gt", "annotations")
"""Frequent names of folders with scenes and with masks, the default ones first."""


def looks_like(raw: Path, split: str) -> list[str]:
    """Return the options of `contrails prepare` that seem to fit a folder, the layout first; empty if unknown."""
    if next((raw / split).glob("*/band_[0-9][0-9].npy"), None) is not None:
        return ["--layout=goes"]
    scenes, masks = _first(raw, _SCENES), _first(raw, _MASKS)
    if scenes and (masks or scenes == _SCENES[0]):
        options = [] if scenes == _SCENES[0] else [f"--scenes={scenes}/{{scene}}"]
        options += [f"--masks={masks}/{{scene}}"] if masks not in (None, _MASKS[0]) else []
        return ["--layout=scenes", *options]
    scenes, masks = _first(raw / split, _SCENES), _first(raw / split, _MASKS)
    if scenes and (masks or (scenes == _SCENES[0] and split == "test")):
        # lists of scenes are read only from RAW itself, so that no option helps: RAW/SPLIT must be given as RAW
        if (raw / split / "filelists").is_dir():
            return []
        options = [f"--masks={split}/{masks}/{{scene}}"] if masks else []
        return ["--layout=scenes", f"--scenes={split}/{scenes}/{{scene}}", *options]
    return ["--layout=images-rle"] if _has_images(raw / split) else []


def _first(raw: Path, names: Iterable[str]) -> str | None:
    return next((name for name in names if _has_images(raw / name)), None)


def _has_images(folder: Path) -> bool:
    """Return whether a folder, or a folder directly in it, has an image file."""
    return any(path.suffix.lower() in ENDINGS for pattern in ("*", "*/*") for path in folder.glob(pattern))
