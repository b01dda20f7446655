"""NaN and infinity: found before they are saved."""

from collections.abc import Iterator
from typing import Any

import torch

from contrails.errors import TrainingError


class NotFiniteError(TrainingError):
    """A state that must not be saved: it holds NaN or infinity."""


def require_finite(content: Any) -> None:
    """Check every floating-point tensor in nested dictionaries and lists; waits for the device.

    Raises:
        NotFiniteError: one of them holds NaN or infinity.
    """
    # a sum is not finite if one term is not, and costs no image of booleans
    sums = [t.detach().sum(dtype=torch.float64) for t in _tensors(content) if t.is_floating_point()]
    if not torch.isfinite(torch.stack(sums)).all():
        raise NotFiniteError("the loss or the weights are no longer finite")


def _tensors(content: Any) -> Iterator[torch.Tensor]:
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _tensors(value)
