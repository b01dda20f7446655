"""Masks on disk: a file a record, each complete or absent, so that a killed command goes on with what is missing.

`predicted.json` in the folder says which ensemble and input they are of; masks of others are never mixed with them.
"""

import io
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from contrails.aggregate.ensemble import Ensemble, identity_of
from contrails.aggregate.postprocess import apply
from contrails.data.store import Dataset
from contrails.errors import DataError
from contrails.files import read_json, to_json, write_atomic
from contrails.progress import bar


def write_masks(
    ensemble: Ensemble, dataset: Dataset, folder: Path, kind: Literal["npy", "png"], device: torch.device
) -> int:
    """Write `<record id>.npy`, bool (H, W), or `.png`, 8 bits with 255 for contrail; return how many were missing.

    Raises:
        DataError: the folder holds masks of another ensemble or input.
    """
    paths = [folder / f"{record_id}.{kind}" for record_id in dataset.record_ids]
    _claim(folder, paths, ensemble, dataset, device)
    missing = np.array([row for row, path in enumerate(paths) if not path.exists()], np.int64)
    with bar("masks", len(paths), done=len(paths) - len(missing)) as advance:
        for rows, images in ensemble.predictor(dataset, device)(missing):
            for row, image in zip(rows, images, strict=True):
                _write(paths[row], apply(image, ensemble.threshold, ensemble.steps))
            advance(len(rows))
    return len(missing)


def _claim(folder: Path, paths: list[Path], ensemble: Ensemble, dataset: Dataset, device: torch.device) -> None:
    """Note what the masks are of, or compare with what is noted."""
    about = identity_of(ensemble, dataset, device) | {"threshold": ensemble.threshold}
    about |= {"steps": [asdict(step) for step in ensemble.steps]}
    noted, note = folder / "predicted.json", to_json(about)
    found = read_json(noted)
    if found is None:
        there = [path.name for path in paths if path.exists()]
        what = f"{there[0]}, and nothing that says what it is of" if there else None
    else:
        what = "masks of another ensemble or input" if to_json(found) != note else None
    if what is not None:
        raise DataError(f"{folder} holds {what}; give another folder, or remove these masks")
    if found is None:
        write_atomic(noted, note)


def _write(path: Path, mask: np.ndarray) -> None:
    content = io.BytesIO()
    if path.suffix == ".npy":
        np.save(content, mask)
    else:
        Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).save(content, "png")
    write_atomic(path, content.getvalue())
