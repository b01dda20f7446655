"""NaN and infinity: found before they are saved, and what to change about them."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from contrails.errors import TrainingError

_NAMED = 10
"""Records that a message names."""


class NotFiniteError(TrainingError):
    """A state that must not be saved: it holds NaN or infinity."""


class OutputNotFiniteError(NotFiniteError):
    """Logits that cannot be scored.

    `records` are those of `count` whose logits are not finite, `overflows` says that they are finite without autocast,
    so that the numbers of the lower precision are what is too small.
    """

    def __init__(self, records: Sequence[str], count: int, *, overflows: bool) -> None:
        names = f"{', '.join(records[:_NAMED])}{', ...' if len(records) > _NAMED else ''}"
        super().__init__(f"the model's output is not finite for {len(records)} of {count} records ({names})")
        self.records, self.count, self.overflows = tuple(records), count, overflows

    def __reduce__(self) -> tuple[Any, ...]:
        """Let ranks tell each other."""
        return partial(OutputNotFiniteError, overflows=self.overflows), (self.records, self.count)


def require_finite(content: Any, what: str = "the loss or the weights are no longer") -> None:
    """Check every floating-point tensor in nested dictionaries and lists; waits for the device.

    Raises:
        NotFiniteError: one of them holds NaN or infinity; `what` begins the message.
    """
    # a sum is not finite if one term is not, and costs no image of booleans
    sums = [t.detach().sum(dtype=torch.float64) for t in _tensors(content) if t.is_floating_point()]
    if not torch.isfinite(torch.stack(sums)).all():
        raise NotFiniteError(f"{what} finite")


def advice(precision: str, *, overflows: bool | None = None) -> str:
    """Return what to change in the recipe; `overflows` as in `OutputNotFiniteError`, None where nobody looked."""
    larger = {"fp16": "bf16", "bf16": "fp32"}.get(precision)
    if overflows:
        largest = torch.finfo(torch.float16 if precision == "fp16" else torch.bfloat16).max
        return f"in fp32 it is finite, and {precision} ends at {largest:.4g}: set train.precision to '{larger}'"
    if overflows is not None:
        return "the weights have grown too large: lower train.lr, or raise train.weight_decay"
    return f"set train.precision to '{larger}', or lower train.lr" if larger else "lower train.lr"


def _tensors(content: Any) -> Iterator[torch.Tensor]:
    if isinstance(content, torch.Tensor):
        yield content
    elif isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _tensors(value)
