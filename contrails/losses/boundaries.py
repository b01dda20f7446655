"""Losses on outlines."""

from collections.abc import Iterator
from functools import reduce

import torch
from torch.nn import functional

from contrails.losses.reduce import mean_of_pixels, mean_of_records
from contrails.recipe.loss import BoundaryF1Term, BoundaryTerm

_SMOOTH = 1.0


def boundary(logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, term: BoundaryTerm) -> torch.Tensor:
    """Return the mean of (p - g) d / r (Kervadec et al. 2019, arXiv 1812.07032, equation 5).

    g is the hard target (t > 1/2) and d the signed distance to its outline, positive outside and clipped at the reach
    r, so that d / r is 1 far from any contrail. The minimum is zero, at p = g. The gradient with respect to p does not
    depend on the error of a pixel, so this loss is meant to be added to another one.
    """
    positive = (target > 0.5) & (counts > 0)
    return mean_of_pixels((torch.sigmoid(logits) - positive.float()) * signed_distance(positive, term.reach_px), counts)


def boundary_f1(logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, term: BoundaryF1Term) -> torch.Tensor:
    """Return 1 - F1 of the outlines of prediction and target (Bokhovkin and Burnaev 2019, arXiv 1905.07852).

    The outline of a mask consists of its pixels with a neighbour outside, computed as (maximum of 1 - p over 3 x 3
    pixels) - (1 - p). Outlines match within the tolerance. Soft targets are thresholded (t > 1/2). The loss is zero at
    p = g and is averaged over the records. A record without outlines has an F1 of 1, because one pixel is added to
    numerators and denominators.
    """
    valid = (counts > 0).float()
    p, g = torch.sigmoid(logits) * valid, (target > 0.5).float() * valid
    inner = valid * (1 - _largest(1 - valid, 1))  # pixels at the border of the valid area are not part of an outline
    outlines = [(_largest(1 - mask, 1) - (1 - mask)) * inner for mask in (p, g)]
    of_p, of_g = outlines
    near_p, near_g = (_largest(outline, term.tolerance_px) for outline in outlines)
    precision = ((of_p * near_g).sum((-2, -1)) + _SMOOTH) / (of_p.sum((-2, -1)) + _SMOOTH)
    recall = ((of_g * near_p).sum((-2, -1)) + _SMOOTH) / (of_g.sum((-2, -1)) + _SMOOTH)
    return mean_of_records(1 - 2 * precision * recall / (precision + recall), counts)


def signed_distance(mask: torch.Tensor, reach: int) -> torch.Tensor:
    """Return the Euclidean distance to the outline of a mask divided by the reach, from -1 (inside) to 1.

    The outline runs between pixels, at a distance of 1/2 from the pixels on both sides.

    Shape:
        bool (B, H, W) to float32 (B, H, W).
    """
    to_inside, to_outside = (_distance(part, reach) - 0.5 for part in (mask, ~mask))
    return (torch.where(mask, -to_outside, to_inside) / reach).clamp(-1, 1)


def _distance(mask: torch.Tensor, reach: int) -> torch.Tensor:
    """Return the distance to the nearest pixel of the mask: exact up to `reach`, any number above `reach` beyond it.

    It is computed axis by axis, as the squared distance is a sum over axes (Felzenszwalb and Huttenlocher 2012).
    """
    far = 4.0 * reach**2
    squares = torch.where(mask, 0.0, far)
    for axis in (-1, -2):
        squares = reduce(torch.minimum, (near + shift**2 for shift, near in _shifts(squares, axis, reach, far)))
    return squares.sqrt()


def _largest(values: torch.Tensor, reach: int) -> torch.Tensor:
    """Return the largest value in the square window around each pixel; values must not be negative.

    It uses shifted copies, because the backward of max pooling sums in no fixed order on CUDA.
    """
    for axis in (-1, -2):
        values = reduce(torch.maximum, (near for _, near in _shifts(values, axis, reach, 0.0)))
    return values


def _shifts(values: torch.Tensor, axis: int, reach: int, fill: float) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (offset, values shifted by it along an axis) for offsets from -reach to reach, with `fill` at the edge."""
    border = (reach, reach) if axis == -1 else (0, 0, reach, reach)
    padded, size = functional.pad(values, border, value=fill), values.shape[axis]
    for offset in range(-reach, reach + 1):
        yield offset, padded.narrow(axis, reach + offset, size)
