"""Masks of rectangles, for images and for labels with an offset."""

import numpy as np
import torch

from contrails.inputs.transfer import to_device


def covered(
    corners: np.ndarray, shape: torch.Size, offset_px: tuple[float, float], device: torch.device
) -> torch.Tensor:
    """Return the fraction of each label pixel that a rectangle of image pixels covers; 0 or 1 without an offset.

    A label pixel at u covers the image around u - offset, so that at the edge of the rectangle it can show both sides.

    Shape:
        corners (B, 4): top, left, bottom, right, the last two excluded, to float32 (B, H, W).
    """
    tops, lefts, bottoms, rights = to_device(corners, device, torch.float32).T
    height, width = shape[-2:]
    down = _share(tops, bottoms, height, offset_px[0])
    right = _share(lefts, rights, width, offset_px[1])
    return down[:, :, None] * right[:, None, :]


def _share(first: torch.Tensor, end: torch.Tensor, size: int, offset: float) -> torch.Tensor:
    """Return the fraction of each pixel of an axis between `first` and `end`; shape: (B,) to (B, size)."""
    centres = torch.arange(size, device=first.device) - offset
    high = torch.minimum(centres + 1, end[:, None])
    low = torch.maximum(centres, first[:, None])
    return (high - low).clamp(0, 1)
