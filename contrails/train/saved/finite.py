"""Checks for NaN and infinity before anything is saved, and advice on what to change."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from contrails.errors import TrainingError

_NAMED = 10
"""Largest number of records named in a message."""


class NotFiniteError(TrainingError):
    """A state that holds NaN or infinity and must not be saved."""


class OutputNotFiniteError(NotFiniteError):
    """Logits that are not finite and cannot be scored.

    `records` are those of the `count` scored records whose logits are not finite. `overflows` is True if the logits are
    finite without autocast: then the range of the lower precision is the cause.
    """

    def __init__(self, records: Sequence[str], count: int, *, overflows: bool) -> None:
        names = f"{', '.join(records[:_NAMED])}{', ...' if len(records) > _NAMED else ''}"
        super().__init__(f"the model's output is not finite for {len(records)} of {count} records ({names})")
        self.records, self.count, self.overflows = tuple(records), count, overflows


def require_finite(content: Any, what: str = "the loss or the weights are no longer") -> None:
    """Check every floating-point tensor in nested dictionaries and lists; waits for the device.

    Raises:
        NotFiniteError: one of them holds NaN or infinity; the message begins with `what`.
    """
    # a sum is not finite if one term is not, and needs no boolean tensor of the same size
    sums = [t.detach().sum(dtype=torch.float64) for t in tensors_of(content) if t.is_floating_point()]
    if not torch.isfinite(torch.stack(sums)).all():
        raise NotFiniteError(f"{what} finite")


def advice(precision: str, *, overflows: bool | None = None) -> str:
    """Return advice on the recipe; `overflows` as in `OutputNotFiniteError`, None if unknown."""
    larger = {"fp16": "bf16", "bf16": "fp32"}.get(precision)
    if overflows:
        largest = torch.finfo(torch.float16 if precision == "fp16" else torch.bfloat16).max
        return f"it is finite in fp32, and the largest {precision} is {largest:.4g}: set train.precision to '{larger}'"
    if overflows is not None:
        return "the weights have grown too large: lower train.lr, or raise train.weight_decay"
    return f"set train.precision to '{larger}', or lower train.lr" if larger else "lower train.lr"


def tensors_of(content: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor in nested dictionaries and lists."""
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from tensors_of(value)
