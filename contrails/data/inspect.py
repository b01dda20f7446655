"""What a dataset file holds, and whether it still holds what was written."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from contrails.data.store import Dataset
from contrails.progress import bar


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return shapes, counts and the statistics of each band in kelvin, read in one pass."""
    positive = dataset.positive_pixels(range(dataset.num_records))
    labelled = int((dataset.annotators > 0).sum()) * dataset.votes[0].size
    return {
        "path": str(dataset.path),
        "bytes": dataset.path.stat().st_size,
        "fingerprint": dataset.fingerprint,
        "split": dataset.split,
        "shape": list(dataset.bands.shape),
        "frames": list(dataset.frames),
        "label_frame": dataset.label_frame,
        "groups": len(set(dataset.groups)),
        "annotators": sorted({int(count) for count in dataset.annotators}),
        "positive_records": int((positive > 0).sum()),
        "positive_share": float(positive.sum() / labelled) if labelled else None,
        "bands": dict(zip(dataset.band_names, _band_statistics(dataset), strict=True)),
    }


def _band_statistics(dataset: Dataset) -> list[dict[str, float]]:
    """Return minimum, mean, deviation and maximum of each band in kelvin."""
    count, bands = 0, len(dataset.band_names)
    total, squares = np.zeros(bands), np.zeros(bands)
    low, high = np.full(bands, np.inf), np.full(bands, -np.inf)
    with bar("statistics", dataset.num_records) as advance:
        for record in dataset.bands:
            values = record.swapaxes(0, 1).reshape(bands, -1).astype(np.float64)
            count += values.shape[1]
            total += values.sum(axis=1)
            squares += (values**2).sum(axis=1)
            low, high = np.minimum(low, values.min(axis=1)), np.maximum(high, values.max(axis=1))
            advance(1)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0))
    kelvin = [dataset.scale_factor * value + dataset.add_offset for value in (low, mean, high)]
    return [
        {"min": float(kelvin[0][i]), "mean": float(kelvin[1][i]), "std": float(deviation[i] * dataset.scale_factor),
         "max": float(kelvin[2][i])}
        for i in range(bands)
    ]  # fmt: skip


def damaged_rows(dataset: Dataset, poll: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Yield "record R: /array ..." for every row whose SHA-256 is not the one that was written with it.

    `poll` is called after every record and may raise to stop.
    """
    with bar("verifying", dataset.num_records) as advance:
        for row, record_id in enumerate(dataset.record_ids):
            for name, digests in dataset.digests.items():
                if hashlib.sha256(getattr(dataset, name)[row].tobytes()).digest() != digests[row].tobytes():
                    yield f"record {record_id}: /{name} is not what was written"
            advance(1)
            poll()
