"""The contents of a dataset file: shapes, counts and statistics."""

from dataclasses import asdict
from typing import Any

import numpy as np

from contrails.dataset.store import IGNORE, Dataset
from contrails.inputs.statistics import Running, Statistics
from contrails.progress import bar

_AXES = ("record", "frame", "band", "y", "x")


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return shapes, counts and the statistics of each band in its unit (kelvin to 0.01 K), read in one pass.

    If no record is labelled, the counts of positive records and pixels are None.
    """
    positive = dataset.positive_pixels(range(dataset.num_records))
    labelled = sum(np.count_nonzero(dataset.votes[row] != IGNORE) for row in np.flatnonzero(dataset.annotators))
    digits = 2 if dataset.units == "K" else 5
    bands = [_rounded(statistics, digits) for statistics in _band_statistics(dataset)]
    return {
        "path": str(dataset.path),
        "bytes": dataset.path.stat().st_size,
        "fingerprint": dataset.fingerprint,
        "split": dataset.split,
        "shape": dict(zip(_AXES, dataset.bands.shape, strict=True)),
        "frames": list(dataset.frames),
        "label_frame": dataset.label_frame,
        "type": f"{dataset.bands.dtype}",
        "units": dataset.units,
        "scenes": len(dataset.scenes),
        "places": len(set(dataset.groups)),
        "annotators": sorted({int(count) for count in dataset.annotators}),
        "positive_records": int((positive > 0).sum()) if labelled else None,
        "positive_share": float(positive.sum() / labelled) if labelled else None,
        "bands": dict(zip(dataset.band_names, bands, strict=True)),
    }


def _rounded(statistics: Statistics, digits: int) -> dict[str, float]:
    return {name: round(value, digits) for name, value in asdict(statistics).items()}


def _band_statistics(dataset: Dataset) -> list[Statistics]:
    """Return the statistics of each band over all frames, in its unit, including padding."""
    running = Running(len(dataset.band_names))
    with bar("statistics", dataset.num_records) as advance:
        for record in dataset.bands:
            running.add(record.swapaxes(0, 1).reshape(len(dataset.band_names), -1))
            advance(1)
    return [counts.mapped(dataset.scale_factor, dataset.add_offset) for counts in running.statistics()]
