"""What a dataset file holds."""

from dataclasses import asdict
from typing import Any

from contrails.data.statistics import Running, Statistics
from contrails.data.store import Dataset
from contrails.progress import bar

_AXES = ("record", "frame", "band", "y", "x")


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return shapes, counts and the statistics of each band in kelvin to 0.01 K, read in one pass.

    Without any label, what is counted of labels is None.
    """
    positive = dataset.positive_pixels(range(dataset.num_records))
    labelled = int((dataset.annotators > 0).sum()) * dataset.votes[0].size
    bands = [_rounded(statistics) for statistics in _band_statistics(dataset)]
    return {
        "path": str(dataset.path),
        "bytes": dataset.path.stat().st_size,
        "fingerprint": dataset.fingerprint,
        "split": dataset.split,
        "shape": dict(zip(_AXES, dataset.bands.shape, strict=True)),
        "frames": list(dataset.frames),
        "label_frame": dataset.label_frame,
        "places": len(set(dataset.groups)),
        "annotators": sorted({int(count) for count in dataset.annotators}),
        "positive_records": int((positive > 0).sum()) if labelled else None,
        "positive_share": float(positive.sum() / labelled) if labelled else None,
        "bands": dict(zip(dataset.band_names, bands, strict=True)),
    }


def _rounded(statistics: Statistics) -> dict[str, float]:
    return {name: round(value, 2) for name, value in asdict(statistics).items()}


def _band_statistics(dataset: Dataset) -> list[Statistics]:
    """Return the statistics of each band over all frames, in kelvin."""
    running = Running(len(dataset.band_names))
    with bar("statistics", dataset.num_records) as advance:
        for record in dataset.bands:
            running.add(record.swapaxes(0, 1).reshape(len(dataset.band_names), -1))
            advance(1)
    return [counts.mapped(dataset.scale_factor, dataset.add_offset) for counts in running.statistics()]
