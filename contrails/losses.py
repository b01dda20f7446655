"""Losses on logits, with soft targets and pixels that do not count."""

import torch
from torch.nn import functional


def binary_cross_entropy(logits: torch.Tensor, target: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return the mean over the pixels that count of -t log p - (1 - t) log(1 - p), in nats.

    Its minimum for a soft target is the target's own entropy, not zero. A batch without valid pixels gives 0.

    Shape:
        logits, target float (B, H, W), valid bool (B, H, W) to a scalar.
    """
    losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (losses * valid).sum() / valid.sum().clamp(min=1)
