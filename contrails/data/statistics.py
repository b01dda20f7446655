"""What channels look like over many records: minimum, mean, deviation and maximum, in one streaming pass."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from contrails.config import Recipe
from contrails.data.batches import Source, in_order, source_of
from contrails.data.composites import Composite, channels_of
from contrails.data.store import Dataset
from contrails.errors import DataError
from contrails.progress import bar

_BATCH_SIZE = 16


@dataclass(frozen=True)
class Statistics:
    """Of one channel over all pixels of the records, in the channel's own unit; `std` divides by their number."""

    min: float
    mean: float
    std: float
    max: float


def channel_statistics(source: Source, rows: np.ndarray) -> list[Statistics]:
    """Return the statistics of each channel of a source; the memory is that of one batch.

    Means and squared deviations are merged batch by batch (Chan, Golub and LeVeque 1983), in float64: sums of squares
    of kelvin would lose what a small deviation is made of.
    """
    count = 0
    mean, squares, low, high = torch.tensor([0.0, 0.0, math.inf, -math.inf], dtype=torch.float64)[:, None]
    with bar("statistics", len(rows)) as advance:
        for batch in in_order(source, rows, _BATCH_SIZE):
            values = batch.inputs.movedim(source.channel_axis, 0).flatten(1).double()
            size, batch_mean = values.shape[1], values.mean(1)
            delta = batch_mean - mean
            squares = squares + (values - batch_mean[:, None]).square_().sum(1)
            squares = squares + delta**2 * (count * size / (count + size))
            count += size
            mean = mean + delta * (size / count)
            low, high = torch.minimum(low, values.amin(1)), torch.maximum(high, values.amax(1))
            advance(len(batch.rows))
    std = (squares / count).sqrt()
    return [Statistics(*(float(v) for v in channel)) for channel in zip(low, mean, std, high, strict=True)]


def fit_composite(dataset: Dataset, recipe: Recipe, rows: np.ndarray) -> Composite:
    """Return what the model sees, with the recipe's normalisation fitted on `rows`, the training split.

    Raises:
        DataError: a channel has one value everywhere, so nothing can be scaled.
        RecipeError: the composite does not fit the dataset.
    """
    normalise = recipe.data.normalise
    channels = channels_of(recipe.data, dataset.band_names)
    if normalise not in ("mean_std", "min_max"):
        return Composite(channels, per_image=normalise == "per_image")
    # one scale for all frames of a channel
    source = replace(source_of(dataset, recipe, Composite(channels), torch.device("cpu")), time_axis=True)
    scales = [_scale(found, normalise) for found in channel_statistics(source, rows)]
    if flat := [number for number, (_, width) in enumerate(scales) if not width]:
        raise DataError(
            f"data.normalise = '{normalise}': channel {flat[0]} of data.composite = {recipe.data.composite!r} has one "
            f"value in all {len(rows)} training records; leave it out, or choose another normalisation"
        )
    return Composite(tuple(c.mapped(1 / width, -low / width) for c, (low, width) in zip(channels, scales, strict=True)))


def _scale(found: Statistics, normalise: Literal["mean_std", "min_max"]) -> tuple[float, float]:
    """Return what becomes zero, and how far one is from there."""
    return (found.mean, found.std) if normalise == "mean_std" else (found.min, found.max - found.min)
