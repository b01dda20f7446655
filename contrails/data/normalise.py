"""Normalisation that is fitted on the training split."""

import logging
from dataclasses import replace

import numpy as np
import torch

from contrails.config import Recipe
from contrails.data.batches import Source, in_order, source_of
from contrails.data.composites import Composite, channels_of
from contrails.data.statistics import Running, Statistics
from contrails.data.store import Dataset
from contrails.errors import DataError
from contrails.progress import bar

_BATCH_SIZE = 16
_USUAL = 10
"""Mean absolute value of a channel that needs no word."""

log = logging.getLogger(__name__)


def fit_composite(dataset: Dataset, recipe: Recipe, rows: np.ndarray) -> Composite:
    """Return what the model sees, with the recipe's normalisation fitted on `rows`, the training split.

    Raises:
        DataError: a channel has one value everywhere, so nothing can be scaled.
        RecipeError: the composite does not fit the dataset.
    """
    normalise = recipe.data.normalise
    channels = channels_of(recipe.data, dataset.band_names)
    if normalise not in ("mean_std", "min_max"):
        composite = Composite(channels, per_image=normalise == "per_image")
        _warn_of_scale(source_of(dataset, recipe, composite, torch.device("cpu")), rows[:_BATCH_SIZE])
        return composite
    # one scale for all frames of a channel
    source = replace(source_of(dataset, recipe, Composite(channels), torch.device("cpu")), time_axis=True)
    found = channel_statistics(source, rows)
    scales = [(s.mean, s.std) if normalise == "mean_std" else (s.min, s.max - s.min) for s in found]
    if flat := [number for number, (_, width) in enumerate(scales) if not width]:
        raise DataError(
            f"data.normalise = '{normalise}': channel {flat[0]} of data.composite = {recipe.data.composite!r} has one "
            f"value in all {len(rows)} training records; leave it out, or choose another normalisation"
        )
    return Composite(
        tuple(c.mapped(1 / width, -zero / width) for c, (zero, width) in zip(channels, scales, strict=True))
    )


def _warn_of_scale(source: Source, rows: np.ndarray) -> None:
    """Say which channels of a few records are of another size than a network with its usual rates learns from."""
    for batch in in_order(source, rows, _BATCH_SIZE):
        sizes = batch.inputs.abs().mean((0, 2, 3)).view(len(source.frames), -1).mean(0).tolist()
        far = [f"channel {number}: {size:.0f} on average" for number, size in enumerate(sizes) if size > _USUAL]
        if far:
            log.warning(
                "channels of data.composite lie far outside of -%d to %d (%s): training may be slow or fail; "
                "scale them in the expressions, or set data.normalise = 'mean_std'",
                *(_USUAL, _USUAL, ", ".join(far)),
            )


def channel_statistics(source: Source, rows: np.ndarray) -> list[Statistics]:
    """Return the statistics of each channel of a source over all pixels of records."""
    running = Running(source.num_channels)
    with bar("statistics", len(rows)) as advance:
        for batch in in_order(source, rows, _BATCH_SIZE):
            running.add(batch.inputs.movedim(source.channel_axis, 0).flatten(1).numpy())
            advance(len(batch.rows))
    return running.statistics()
