"""Predictions in a fixed order, and their global Dice at every threshold."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from contrails.data.batches import Batch, Source, in_order
from contrails.losses.pixels import binary_cross_entropy
from contrails.metrics import NUM_BINS, Histogram
from contrails.models.outputs import Outputs
from contrails.train.finite import NotFiniteError


@dataclass(frozen=True)
class Evaluation:
    """How good a model is on labelled records: mean loss in nats, and the histogram of its probabilities."""

    loss: float
    histogram: Histogram


def predict(model: nn.Module, source: Source, rows: np.ndarray, batch_size: int) -> Iterator[tuple[Batch, Outputs]]:
    """Yield (batch, outputs) in the order of `rows`; the model is in evaluation mode meanwhile."""
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
    """Evaluate a model on labelled rows; `poll` is called after every batch and may raise to stop."""
    losses, pixels, histogram = 0.0, 0, Histogram.empty()
    for batch, outputs in predict(model, source, rows, batch_size):
        logits = outputs.mask
        if not torch.isfinite(logits).all():
            names = ", ".join(source.dataset.record_ids[row] for row in batch.rows[:3])
            raise NotFiniteError(f"the model's output is not finite for the records {names}")
        count = int(batch.valid.sum())
        losses += float(binary_cross_entropy(logits, batch.target, batch.valid)) * count
        pixels += count
        histogram += _histogram(logits, batch)
        poll()
    return Evaluation(losses / max(pixels, 1), histogram)


def _histogram(logits: torch.Tensor, batch: Batch) -> Histogram:
    rounded = round_probabilities(logits)
    positive, negative = rounded[batch.hard], rounded[batch.valid & ~batch.hard]
    counts = [torch.bincount(part, minlength=NUM_BINS).cpu().numpy() for part in (positive, negative)]
    return Histogram(counts[0], counts[1])
