"""Masks on disk: one complete file per record or scene, so that an interrupted command continues with missing ones.

Existing files are read before they count as done, since a disk or an interrupted copy may have damaged them.

`predicted.json` in the folder names the ensemble and the input of the masks, so that masks of different ensembles or
inputs are never mixed.
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
"""File endings of masks; one `predicted.json` is about all of them."""


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
    """Write `<id>.<kind>`: npy bool (H, W); png 8 bits, 255 for positive; tif 0 and 1, with the scene's georeference.

    Returns how many masks were missing or damaged. With `force`, masks of another ensemble or input are replaced.

    Raises:
        DataError: the members were trained on other data, or the folder holds masks of another ensemble or input.
    """
    predict = predictor(ensemble, dataset, device)  # raises for unsuitable data before the folder is created
    paths = {name: folder / f"{name}.{kind}" for name in dataset.whole_shapes}
    busy = f"another process predicts into {folder}; wait for it, or stop it, then run the same command again"
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
    """Return everything that determines the masks of a dataset."""
    about = identity_of(ensemble, device) | {"dataset": dataset.fingerprint, "threshold": ensemble.threshold}
    return about | {"steps": [asdict(step) for step in ensemble.steps], "blend": blend}


def _missing(paths: Mapping[str, Path], shapes: Mapping[str, tuple[int, int]]) -> set[str]:
    """Return the names of missing and damaged masks; warn of damaged ones."""
    damaged = {name for name, path in paths.items() if path.exists() and not _is_whole(path, shapes[name])}
    if damaged:
        log.warning(
            "%d existing masks are damaged or incomplete, and are made again: %s",
            *(len(damaged), names_in(sorted(paths[name].name for name in damaged))),
        )
    return damaged | {name for name, path in paths.items() if not path.exists()}


def _is_whole(path: Path, shape: tuple[int, int]) -> bool:
    """Return whether a mask can be read completely, and has the size of its record."""
    try:
        if path.suffix == ".npy":
            found: tuple[int, ...] = np.load(path, allow_pickle=False).shape
        elif path.suffix == ".png":
            with Image.open(path) as picture:
                found = picture.height, picture.width
                picture.verify()  # checks the checksums of all chunks, including the last one
        else:
            found = read_scene(path).shape
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, DataError):
        return False
    return found == shape


def _claim(folder: Path, paths: list[Path], about: dict[str, Any], *, force: bool) -> None:
    """Record the origin of the masks, or compare it with the recorded one; with `force`, remove other masks."""
    noted, note = folder / "predicted.json", to_json(about)
    found = read_json(noted)
    if found is not None:
        found = {"blend": "hann"} | found  # older versions did not record it
    if found is None:
        there = [path.name for path in paths if path.exists()]
        what = f"{there[0]}, but no predicted.json that names its origin" if there else None
    else:
        what = "masks of another ensemble or input" if to_json(found) != note else None
    if what is not None and not force:
        raise DataError(f"{folder} holds {what}; give another folder, or --force to replace the masks of these names")
    if what is not None:
        if found is not None:  # one predicted.json is about all kinds, so masks of other kinds must not stay
            stems = [(path, path.name.removesuffix(path.suffix)) for path in paths]
            paths = [path.with_name(f"{stem}.{kind}") for path, stem in stems for kind in _KINDS]
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
