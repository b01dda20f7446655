"""Averages of weights: over epochs of one training (SWA, greedy soup), or over folds if requested.

Files are streamed, so that memory holds one running sum and one tensor. They are sorted by name, so that the result
does not depend on the order of the arguments. Batch-norm statistics of the parts do not fit the average, so they are
estimated again on training records.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from contrails.errors import DataError, GpuMemoryError
from contrails.inputs.batches import Source, in_order
from contrails.models.weights import stream_weights

Tensors = dict[str, torch.Tensor]


def average_weights(paths: Sequence[Path]) -> Tensors:
    """Return the mean of each tensor over weights files; integer tensors are those of the first file.

    Raises:
        DataError: a file is damaged, no weights file, not finite, or of another architecture.
    """
    first, *others = sorted(paths, key=lambda path: (path.name, str(path)))
    mean = {name: tensor.clone() for name, tensor in stream_weights(first)}
    for path in others:
        names = set()
        for name, tensor in stream_weights(path):
            _require_like(mean, name, tensor, path, first)
            names.add(name)
            if tensor.is_floating_point():
                mean[name].add_(tensor)
        if absent := sorted(mean.keys() - names):
            raise DataError(
                f"{path} lacks {absent[0]}, which {first} has: expected weights of one architecture; leave one out"
            )
    for tensor in mean.values():
        if tensor.is_floating_point():
            tensor.div_(1 + len(others))
    if not is_finite(mean):
        culprit = next(path for path in (first, *others) if not is_finite(dict(stream_weights(path))))
        raise DataError(f"{culprit} holds weights that are not finite; choose other --weights, or train the fold again")
    return mean


def is_finite(tensors: Tensors) -> bool:
    """Return whether all floating-point values are finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point())


def refresh_batch_norm(model: nn.Module, source: Source, rows: np.ndarray, batch_size: int) -> int:
    """Estimate batch-norm statistics on records in order, all batches weighted equally; return how many were used.

    Like `torch.optim.swa_utils.update_bn`, except that all other layers are in evaluation mode: dropout would make the
    result random.

    Raises:
        DataError: the statistics are not finite.
        GpuMemoryError: a batch does not fit in the GPU's memory.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not norms:
        return 0
    # an incomplete last batch would get the weight of a whole one
    rows = rows[: max(len(rows) // batch_size, 1) * batch_size] if len(rows) > batch_size else rows
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # makes the statistics the plain mean over batches
        norm.train()
    try:
        with torch.no_grad():
            for batch in in_order(source, rows, batch_size):
                model(batch.inputs)
    except torch.OutOfMemoryError as error:  # a smaller batch would give other statistics
        raise GpuMemoryError(
            f"expected a GPU with memory for a batch of training, {batch_size} records, from which the batch-norm "
            f"statistics of averaged weights are computed: {error}; use --device cpu, a larger GPU, or --weights that "
            "are not averaged, such as best"
        ) from error
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
    if not is_finite(model.state_dict()):
        raise DataError(
            f"the batch-norm statistics of averaged weights on {len(rows)} training records are not finite: the "
            "weights are too large; choose --weights that are not averaged, such as best"
        )
    return len(rows)


def greedy_soup(
    ranked: Sequence[Path], score: Callable[[Sequence[Path]], float], tick: Callable[[], None] = lambda: None
) -> list[Path]:
    """Return the files with the best mean: in order of rank, each is added if the score improves (Wortsman, 2022)."""
    chosen: list[Path] = []
    best = -1.0
    for path in ranked:
        found = score([*chosen, path])
        if found > best:
            chosen, best = [*chosen, path], found
        tick()
    return chosen


def _require_like(mean: Tensors, name: str, tensor: torch.Tensor, path: Path, first: Path) -> None:
    if name not in mean or mean[name].shape != tensor.shape:
        expected = f"{tuple(mean[name].shape)} as in {first}" if name in mean else f"no such tensor, as in {first}"
        raise DataError(
            f"{path}: {name}: expected {expected}, found {tuple(tensor.shape)}; weights of different architectures "
            "cannot be averaged"
        )
