"""Small raw records for tests, in the competition's layout."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_record(
    root: Path,
    split: str,
    record_id: str,
    *,
    size: int = 32,
    bands: Sequence[int] = (11, 14, 15),
    annotators: int = 4,
    pixel_mask: bool = True,
    seed: int = 0,
    positive: bool = True,
) -> Path:
    """Write one record; a positive one has a bright line in b14-b15 that most annotators mark. 0 annotators: none."""
    rng = np.random.default_rng(seed)
    folder = root / split / record_id
    folder.mkdir(parents=True)
    truth = np.zeros((size, size), np.int32)
    if positive:
        line = int(rng.integers(4, size - 6))
        truth[line : line + 3, 4:-4] = 1
    for band in bands:
        kelvin = rng.normal(280, 3, (size, size, 8)).astype(np.float32)
        if band == 15:
            kelvin -= 4 * truth[..., None].astype(np.float32)
        np.save(folder / f"band_{band:02d}.npy", kelvin)
    if annotators:
        individual = np.repeat(truth[..., None, None], annotators, axis=3)
        individual[:, :8, :, 0] = 0  # one of them sees less
        np.save(folder / "human_individual_masks.npy", individual)
    if pixel_mask:
        np.save(folder / "human_pixel_masks.npy", truth[..., None])
    return folder


def write_metadata(root: Path, split: str, entries: Sequence[dict[str, Any]]) -> None:
    """Write `<split>_metadata.json`; an entry needs record_id, tile (any text) and timestamp."""
    rows = [
        {
            "record_id": entry["record_id"],
            "projection_wkt": entry["tile"],
            "row_min": 1.0,
            "row_size": -1984.9,
            "col_min": 2.0,
            "col_size": 1929.8,
            "timestamp": entry["timestamp"],
        }
        for entry in entries
    ]
    (root / f"{split}_metadata.json").write_text(json.dumps(rows))
