"""The batch size of prediction: what fits in the GPU's memory.

On a GPU the first few records are predicted in a small batch, whose peak memory tells how many fit in what is free. A
batch that does not fit after all is halved, and its records are predicted again. Both are remembered for the rest of
the process, by kind of prediction. On a CPU the largest size is taken, as there is nothing to measure.

Libraries choose kernels by the shape of a batch, so a probability depends on the batch size by rounding: of the 16 bits
that are written, the last one may differ. Sizes are powers of two, so that a GPU that nothing else uses gives the same
size each time, and thus the same bits. The last batch is smaller; to pad it would change nothing about this. Training
does not use this module: its values must not depend on what else uses the GPU.
"""

import logging
from collections.abc import Callable, Hashable, Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from contrails.errors import GpuMemoryError
from contrails.inputs.batches import Source

_FIRST = 4
"""Records of the batch that is measured."""

_USED = 0.8
"""Fraction of the free memory that batches may use; the rest is for fragments and other processes."""

_sizes: dict[tuple[torch.device, Hashable], int] = {}

T = TypeVar("T")

log = logging.getLogger(__name__)


def in_fitting_batches(
    rows: np.ndarray,
    predict: Callable[[np.ndarray, int], Iterator[tuple[np.ndarray, T]]],
    kind: Hashable,
    largest: int,
    device: torch.device,
) -> Iterator[tuple[np.ndarray, T]]:
    """Yield what `predict` yields for all rows, each row once and in order, in batches that fit in the memory.

    Args:
        rows: rows to predict, int64 (N,).
        predict: a function that predicts rows in batches of a size, and yields each batch's rows with the result.
        kind: everything that the memory of a record depends on.
        largest: the largest batch size.
        device: the device that predicts.

    Raises:
        GpuMemoryError: a single record does not fit.
    """
    done, key = 0, (device, kind)
    while done < len(rows):
        size = min(largest, _sizes.get(key, _FIRST if device.type == "cuda" else largest))
        is_trial = key not in _sizes and device.type == "cuda" and size < largest
        before = _allocated(device) if is_trial else 0
        try:
            for part, found in predict(rows[done : done + size] if is_trial else rows[done:], size):
                yield part, found
                done += len(part)
            if is_trial and done >= size:  # fewer records would seem to need more memory each
                _sizes[key] = _fitting(device, before, size)
            continue
        except torch.OutOfMemoryError as error:
            if size == 1:
                raise GpuMemoryError(
                    f"expected a record that fits in the GPU's memory: {error}; use --device cpu, a larger GPU, a "
                    "smaller --tile for a scene, or wait until other processes have left the GPU"
                ) from error
            _sizes[key] = size // 2
        # only here, since the error keeps the tensors of the failed batch alive
        torch.cuda.empty_cache()
        log.warning("a batch of %d records does not fit in the GPU's memory: going on with %d", size, size // 2)


def kind_of(model: nn.Module, source: Source) -> Hashable:
    """Return what the memory of a record depends on: the model's size, its own input size if it has one, the record."""
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    frames = len(source.frames) if source.time_axis else 1
    return num_parameters, getattr(model, "size", None), frames, source.num_channels, source.dataset.votes.shape[1:]


def _allocated(device: torch.device) -> int:
    """Return the bytes in use, and begin to measure their peak."""
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _fitting(device: torch.device, before: int, count: int) -> int:
    """Return the largest power of two of records that fit, after a batch of `count` with `before` bytes in use."""
    per_record = max(1, (torch.cuda.max_memory_allocated(device) - before) // count)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = torch.cuda.mem_get_info(device)[0] + cached
    fits = max(1, int(_USED * free) // per_record)
    return 1 << (fits.bit_length() - 1)
