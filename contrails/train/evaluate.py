"""Predictions in a fixed order, and the histogram that gives their global Dice at every threshold."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from contrails.inputs.batches import Batch, Source, in_order
from contrails.losses.pixels import binary_cross_entropy
from contrails.metrics import NUM_BINS, Histogram
from contrails.models.outputs import Outputs
from contrails.train.saved.finite import OutputNotFiniteError


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on labelled records: mean loss in nats, and the histogram of its probabilities."""

    loss: float
    histogram: Histogram


def predict(model: nn.Module, source: Source, rows: np.ndarray, batch_size: int) -> Iterator[tuple[Batch, Outputs]]:
    """Yield (batch, outputs) in the order of `rows`; switches the model to evaluation mode while it runs."""
    was_training = model.training
    model.eval()
    try:
        for batch in in_order(source, rows, batch_size):
            with torch.inference_mode():
                outputs = model(batch.inputs)
            yield batch, outputs
    finally:
        model.train(was_training)


def round_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return probabilities rounded to 16 bits, int32 from 0 to 65535 (see `contrails.metrics`)."""
    return (torch.sigmoid(logits) * (NUM_BINS - 1)).round().to(torch.int32)


def evaluate(
    model: nn.Module, source: Source, rows: np.ndarray, batch_size: int, poll: Callable[[], None] = lambda: None
) -> Evaluation:
    """Evaluate a model on labelled rows; `poll` is called after every batch and may raise to stop.

    Raises:
        OutputNotFiniteError: the logits of a record are not finite.
    """
    losses, pixels, histogram = 0.0, 0, Histogram.empty()
    bad, overflows = list[str](), False
    for batch, outputs in predict(model, source, rows, batch_size):
        logits = outputs.mask
        if not torch.isfinite(logits).all():
            overflows = overflows if bad else _is_finite_in_fp32(model, batch)
            wrong = ~torch.isfinite(logits).flatten(1).all(1).cpu().numpy()
            bad += [source.dataset.record_ids[row] for row in batch.rows[wrong]]
        elif not bad:
            count = int(batch.valid.sum())
            losses += float(binary_cross_entropy(logits, batch.target, batch.valid)) * count
            pixels += count
            histogram += _histogram(logits, batch)
        poll()
    if bad:
        raise OutputNotFiniteError(bad, len(rows), overflows=overflows)
    return Evaluation(losses / max(pixels, 1), histogram)


def _is_finite_in_fp32(model: nn.Module, batch: Batch) -> bool:
    """Return whether the output of a batch is finite without autocast."""
    kind = batch.inputs.device.type
    if not torch.is_autocast_enabled(kind):
        return False
    with torch.inference_mode(), torch.autocast(kind, enabled=False):
        return bool(torch.isfinite(model(batch.inputs).mask).all())


def _histogram(logits: torch.Tensor, batch: Batch) -> Histogram:
    rounded = round_probabilities(logits)
    positive, negative = rounded[batch.hard], rounded[batch.valid & ~batch.hard]
    counts = [torch.bincount(part, minlength=NUM_BINS).cpu().numpy() for part in (positive, negative)]
    return Histogram(counts[0], counts[1])
