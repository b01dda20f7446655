"""Pictures of records: ash false colour, true colour, or the first band in grey, depending on the bands of the file."""

import numpy as np

from contrails.dataset.store import Dataset
from contrails.inputs.composites import Channel, channels_named

_ASH_BANDS = {"b11", "b14", "b15"}
_TRUE_BANDS = ("red", "green", "blue")


def colours_said(dataset: Dataset) -> str:
    """Return the name of the colours of `colours_of`."""
    if set(dataset.band_names) >= _ASH_BANDS:
        return "ash false colour"
    if set(_TRUE_BANDS) <= set(dataset.band_names):
        return "true colour from 1% to 99%"
    return f"{dataset.band_names[0]}, grey from 1% to 99%"


def labelled_frame(dataset: Dataset) -> int:
    """Return the position along axis T of the labelled frame, or of the nearest packed frame."""
    return min(range(len(dataset.frames)), key=lambda i: abs(dataset.frames[i] - dataset.label_frame))


def colours_of(dataset: Dataset, row: int, frame: int) -> np.ndarray:
    """Return a frame of a record without its padding, from 0 to 1; `frame` is its position along axis T.

    Shape:
        float32 (H, W, 3) in ash false colour; float64 (H, W, 3) in true colour or (H, W) in grey, scaled from the
        1st to the 99th percentile of the record.
    """
    bands = dataset.bands[row, frame][:, *dataset.unpadded(row)]
    if set(dataset.band_names) >= _ASH_BANDS:
        return np.stack(
            [_seen(dataset, bands, channel) for channel in channels_named("ash", dataset.band_names)], axis=-1
        )
    values = bands[0].astype(np.float64)
    if set(_TRUE_BANDS) <= set(dataset.band_names):
        values = np.stack([bands[dataset.band_names.index(name)] for name in _TRUE_BANDS], -1).astype(np.float64)
    low, high = np.percentile(values, (1, 99))
    scaled: np.ndarray = (values - low) / max(high - low, 1)
    return scaled.clip(0, 1)


def _seen(dataset: Dataset, bands: np.ndarray, channel: Channel) -> np.ndarray:
    value = np.full(bands.shape[1:], channel.constant, np.float32)
    for band, weight in channel.weights.items():
        kelvin = bands[dataset.band_names.index(band)].astype(np.float32) * dataset.scale_factor + dataset.add_offset
        value += np.float32(weight) * kelvin
    return value.clip(*channel.clip or (0.0, 1.0))
