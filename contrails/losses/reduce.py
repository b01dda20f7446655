"""Means over what counts."""

import torch


def mean_of_pixels(losses: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the mean over the pixels that count at all; a record of weight 1/2 pulls half as hard.

    Shape:
        losses, counts float (B, H, W) to a scalar.
    """
    return (losses * counts).sum() / (counts > 0).sum().clamp(min=1)


def mean_of_records(losses: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the mean over the records with a pixel that counts, likewise weighed.

    Shape:
        losses float (B,), counts float (B, H, W) to a scalar.
    """
    weights = counts.amax((-2, -1))
    return (losses * weights).sum() / (weights > 0).sum().clamp(min=1)
