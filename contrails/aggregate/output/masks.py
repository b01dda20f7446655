"""Masks on disk: a file a record or scene, complete or absent, so that a killed command goes on with what is missing.

What is there is read before it counts: a disk, or a copy that was cut short, may have damaged it.

`predicted.json` in the folder says which ensemble and input they are of; masks of others are never mixed with them.
"""

import io
import logging
import struct
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from contrails.aggregate.apply import identity_of, masks_of, predictor
from contrails.aggregate.ensemble import Ensemble
from contrails.aggregate.members.untile import Whole
from contrails.aggregate.output.scene_files import mask_values, read_scene, scene_file
from contrails.dataset.store import Dataset
from contrails.errors import DataError, names_in
from contrails.files import read_json, to_json, write_atomic
from contrails.locks import sole_writer
from contrails.progress import bar
from contrails.sources.tiles import Blend

log = logging.getLogger(__name__)

_KINDS = ("npy", "png", "tif")
"""Endings of masks; one note is of all kinds."""


def write_masks(
    ensemble: Ensemble,
    dataset: Dataset,
    folder: Path,
    kind: str,
    device: torch.device,
    blend: Blend = "hann",
    *,
    force: bool = False,
) -> int:
    """Write `<id>.<kind>`: npy, bool (H, W); png, 8 bits with 255 for contrail; tif, 0 and 1, where the scene lies.

    Returns how many were missing or damaged. With `force` masks that are of something else are replaced.

    Raises:
        DataError: the members were trained on other data, or the folder holds masks of another ensemble or input.
    """
    predict = predictor(ensemble, dataset, device)  # refuses other data before there is a folder
    paths = {name: folder / f"{name}.{kind}" for name in dataset.whole_shapes}
    busy = f"another process predicts into {folder}; wait for it, or end it, then run the same command again"
    with sole_writer(folder / "predicted.lock", busy):
        _claim(folder, list(paths.values()), made_of(ensemble, dataset, device, blend), force=force)
        missing = _missing(paths, dataset.whole_shapes)
        rows = np.array([row for row in range(dataset.num_records) if dataset.whole(row) in missing], np.int64)
        with bar("masks", len(paths), done=len(paths) - len(missing)) as advance:
            for whole, mask in masks_of(ensemble, dataset, predict(rows), blend):
                _write(paths[whole.scene.name], whole, mask)
                advance(1)
    return len(missing)


def made_of(ensemble: Ensemble, dataset: Dataset, device: torch.device, blend: Blend) -> dict[str, Any]:
    """Return all that decides the masks of a dataset."""
    about = identity_of(ensemble, device) | {"dataset": dataset.fingerprint, "threshold": ensemble.threshold}
    return about | {"steps": [asdict(step) for step in ensemble.steps], "blend": blend}


def _missing(paths: Mapping[str, Path], shapes: Mapping[str, tuple[int, int]]) -> set[str]:
    """Return the names of masks that are not there, or cannot be read whole, which is told."""
    damaged = {name for name, path in paths.items() if path.exists() and not _is_whole(path, shapes[name])}
    if damaged:
        log.warning(
            "%d masks that were there are damaged or half written, and are made again: %s",
            *(len(damaged), names_in(sorted(paths[name].name for name in damaged))),
        )
    return damaged | {name for name, path in paths.items() if not path.exists()}


def _is_whole(path: Path, shape: tuple[int, int]) -> bool:
    """Return whether all of a mask can be read, and has the size of its record."""
    try:
        if path.suffix == ".npy":
            found: tuple[int, ...] = np.load(path, allow_pickle=False).shape
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                found = picture.height, picture.width
                picture.verify()  # the checksums of all its chunks, also of the last one
        else:
            found = read_scene(path).shape
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, DataError):
        return False
    return found == shape


def _claim(folder: Path, paths: list[Path], about: dict[str, Any], *, force: bool) -> None:
    """Note what the masks are of, or compare with what is noted; with `force` others are removed."""
    noted, note = folder / "predicted.json", to_json(about)
    found = read_json(noted)
    if found is not None:
        found = {"blend": "hann"} | found  # folders from before the note said it
    if found is None:
        there = [path.name for path in paths if path.exists()]
        what = f"{there[0]}, and nothing that says what it is of" if there else None
    else:
        what = "masks of another ensemble or input" if to_json(found) != note else None
    if what is not None and not force:
        raise DataError(f"{folder} holds {what}; give another folder, or --force to replace the masks of these names")
    if what is not None:
        if found is not None:  # it was of masks of all kinds, and would soon say of them what they are not
            paths = [
                path.with_name(f"{path.name.removesuffix(path.suffix)}.{kind}") for path in paths for kind in _KINDS
            ]
        for path in (noted, *paths):
            path.unlink(missing_ok=True)
    if what is not None or found is None:
        write_atomic(noted, note)


def _write(path: Path, whole: Whole, mask: np.ndarray) -> None:
    if path.suffix == ".tif":
        with scene_file(path, whole.scene, "tif") as write:
            write(0, mask_values(mask, whole.predicted, "tif"))
        return
    content = io.BytesIO()
    if path.suffix == ".npy":
        np.save(content, mask)
    else:
        Image.fromarray(mask_values(mask, whole.predicted, "png")).save(content, "png")
    write_atomic(path, content.getvalue())
