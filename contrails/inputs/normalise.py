"""Normalisation fitted on the training split of a fold."""

import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from contrails.dataset.store import Dataset
from contrails.errors import DataError
from contrails.inputs.batches import Source, in_order, source_of
from contrails.inputs.composites import Composite, channels_of
from contrails.inputs.statistics import Running, Statistics
from contrails.progress import bar
from contrails.recipe.recipe import Recipe

_BATCH_SIZE = 16
_NUM_BINS = 4096
_USUAL = 10
"""Largest mean absolute value of a channel without a warning."""

log = logging.getLogger(__name__)


def fit_composite(dataset: Dataset, recipe: Recipe, rows: np.ndarray) -> Composite:
    """Return the input channels, with the recipe's normalisation fitted on `rows`, the training split.

    Raises:
        DataError: a channel has a single value everywhere, so that it cannot be scaled.
        RecipeError: the composite does not fit the dataset.
    """
    normalise = recipe.data.normalise
    channels = channels_of(recipe.data, dataset.band_names, dataset.units)
    if normalise not in ("mean_std", "min_max", "percentiles"):
        composite = Composite(channels, per_image=normalise == "per_image")
        _warn_of_scale(source_of(dataset, recipe, composite, torch.device("cpu")), rows[:_BATCH_SIZE])
        return composite
    # with a time axis, so that a channel gets one scale for all frames
    source = replace(source_of(dataset, recipe, Composite(channels), torch.device("cpu")), time_axis=True)
    found = channel_statistics(source, rows)
    scales = [(s.mean, s.std) if normalise == "mean_std" else (s.min, s.max - s.min) for s in found]
    if normalise == "percentiles":
        scales = _percentiles(source, rows, found)
    if flat := [number for number, (_, width) in enumerate(scales) if not width]:
        raise DataError(
            f"data.normalise = '{normalise}': expected a channel with different values, found a single value in "
            f"channel {flat[0]} of data.composite = {recipe.data.composite!r} in all {len(rows)} training records; "
            "leave the channel out, or choose another normalisation"
        )
    mapped = tuple(c.mapped(1 / width, -zero / width) for c, (zero, width) in zip(channels, scales, strict=True))
    return Composite(tuple(replace(c, clip=(0.0, 1.0)) for c in mapped) if normalise == "percentiles" else mapped)


def _warn_of_scale(source: Source, rows: np.ndarray) -> None:
    """Warn of channels whose values in a few records are too large to train with usual learning rates."""
    for batch in in_order(source, rows, _BATCH_SIZE):
        sizes = batch.inputs.abs().mean((0, 2, 3)).view(len(source.frames), -1).mean(0).tolist()
        far = [f"channel {number}: {size:.0f} on average" for number, size in enumerate(sizes) if size > _USUAL]
        if far:
            log.warning(
                "channels of data.composite are far outside of -%d to %d (%s): training may be slow or fail; "
                "scale them in the expressions, or set data.normalise = 'mean_std'",
                *(_USUAL, _USUAL, ", ".join(far)),
            )


def channel_statistics(source: Source, rows: np.ndarray) -> list[Statistics]:
    """Return the statistics of each channel over the valid pixels of records, without padding and nodata.

    Raises:
        DataError: no pixel is valid.
    """
    running = Running(source.num_channels)
    for values in _values(source, rows):
        running.add(values)
    if not running.count:
        raise DataError(
            f"{source.dataset.path}: expected valid pixels in {len(rows)} training records, found none; check their "
            "masks"
        )
    return running.statistics()


def _percentiles(source: Source, rows: np.ndarray, found: list[Statistics]) -> list[tuple[float, float]]:
    """Return (1st percentile, distance from it to the 99th) of each channel, exact to 1/4096 of the channel's range."""
    counts = np.zeros((len(found), _NUM_BINS), np.int64)
    ranges = [(channel.min, max(channel.max, channel.min + 1e-6)) for channel in found]
    for values in _values(source, rows):
        for channel, (row, limits) in enumerate(zip(values, ranges, strict=True)):
            counts[channel] += np.histogram(row, _NUM_BINS, limits)[0]
    scales = []
    for row, (low, high) in zip(counts, ranges, strict=True):
        first, last = np.searchsorted(row.cumsum() / row.sum(), (0.01, 0.99))
        width = (high - low) / _NUM_BINS
        # width 0 for a channel with a single value, so that the caller refuses it as with other normalisations
        scales.append((low + first * width, (last + 1 - first) * width if high > low + 1e-6 else 0.0))
    return scales


def _values(source: Source, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the values of the valid pixels, float32 (C, any number), some records at a time."""
    with bar("statistics", len(rows)) as advance:
        for batch in in_order(source, rows, _BATCH_SIZE):
            values = batch.inputs.movedim(source.channel_axis, 0)
            if batch.valid.all():
                yield values.flatten(1).numpy()
            elif batch.valid.any():
                counting = batch.valid[:, None].expand(values.shape[1:]) if source.time_axis else batch.valid
                yield values[:, counting].numpy()
            advance(len(batch.rows))
