"""Weighted means over valid pixels and records."""

import torch


def mean_of_pixels(losses: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum divided by the number of valid pixels; a weight of 1/2 thus halves a record's gradient.

    Shape:
        losses, counts float (B, H, W) to a scalar.
    """
    return (losses * counts).sum() / (counts > 0).sum().clamp(min=1)


def mean_of_records(losses: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the weighted sum divided by the number of records with a valid pixel.

    Shape:
        losses float (B,), counts float (B, H, W) to a scalar.
    """
    weights = counts.amax((-2, -1))
    return (losses * weights).sum() / (weights > 0).sum().clamp(min=1)
