"""Predictions in a fixed order, and the histogram that gives their global Dice at every threshold."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from contrails.inputs.batch_size import in_fitting_batches, kind_of
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


def predict(
    model: nn.Module, source: Source, rows: np.ndarray, batch_size: int, *, halve: bool = False
) -> Iterator[tuple[Batch, Outputs]]:
    """Yield (batch, outputs) in the order of `rows`; switches the model to evaluation mode while it runs.

    With `halve`, batches are as large as fits in the memory, at most `batch_size`; outside of training only.

    Raises:
        GpuMemoryError: with `halve`, a single record does not fit.
    """

    def predicted(rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, tuple[Batch, Outputs]]]:
        for batch in in_order(source, rows, size):
            with torch.inference_mode():
                outputs = model(batch.inputs)
            yield batch.rows, (batch, outputs)

    was_training = model.training
    model.eval()
    try:
        fitted = in_fitting_batches(rows, predicted, kind_of(model, source), batch_size, source.device)
        for _, found in fitted if halve else predicted(rows, batch_size):
            yield found
    finally:
        model.train(was_training)


def round_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Return probabilities rounded to 16 bits, int32 from 0 to 65535 (see `contrails.metrics`)."""
    return (torch.sigmoid(logits) * (NUM_BINS - 1)).round().to(torch.int32)


def evaluate(
    model: nn.Module,
    source: Source,
    rows: np.ndarray,
    batch_size: int,
    poll: Callable[[], None] = lambda: None,
    *,
    halve: bool = False,
) -> Evaluation:
    """Evaluate a model on labelled rows; `poll` is called after every batch and may raise to stop.

    With `halve`, batches are as large as fits in the memory, as in `predict`.

    Raises:
        OutputNotFiniteError: the logits of a record are not finite.
        GpuMemoryError: with `halve`, a single record does not fit.
    """
    # sums stay on the device until the end: fetching them after every batch would keep a GPU waiting
    loss_sum = torch.zeros((), dtype=torch.float64, device=source.device)
    pixels = torch.zeros((), dtype=torch.int64, device=source.device)
    counts = torch.zeros((2, NUM_BINS), dtype=torch.int64, device=source.device)
    finite: list[torch.Tensor] = []
    for batch, outputs in predict(model, source, rows, batch_size, halve=halve):
        finite.append(torch.isfinite(outputs.mask).flatten(1).all(1))
        logits, in_batch = outputs.mask.nan_to_num(), batch.valid.sum()  # NaN has no bin; it is reported below
        loss_sum += binary_cross_entropy(logits, batch.target, batch.valid).double() * in_batch
        pixels += in_batch
        counts += _counts(logits, batch)
        poll()
    wrong = rows[~torch.cat(finite).cpu().numpy()] if finite else rows[:0]
    if len(wrong):
        bad = [source.dataset.record_ids[row] for row in wrong]
        raise OutputNotFiniteError(bad, len(rows), overflows=_is_finite_in_fp32(model, source, wrong[:1]))
    negative, positive = counts.cpu().numpy()
    return Evaluation(float(loss_sum) / max(int(pixels), 1), Histogram(positive, negative))


def _is_finite_in_fp32(model: nn.Module, source: Source, rows: np.ndarray) -> bool:
    """Return whether the output for these rows is finite without autocast."""
    kind = source.device.type
    if not torch.is_autocast_enabled(kind):
        return False
    with torch.autocast(kind, enabled=False):
        return all(bool(torch.isfinite(outputs.mask).all()) for _, outputs in predict(model, source, rows, len(rows)))


def _counts(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the histograms of a batch, int64 (2, 65536): of pixels without contrail, and of those with it."""
    bins = round_probabilities(logits) + NUM_BINS * batch.hard
    # ignored pixels go to an extra last bin: selecting the others by a mask would make the CPU wait for the GPU
    counts = torch.bincount(torch.where(batch.valid, bins, 2 * NUM_BINS).flatten(), minlength=2 * NUM_BINS + 1)
    return counts[:-1].view(2, NUM_BINS)
