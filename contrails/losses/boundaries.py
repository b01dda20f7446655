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

    g is the hard target (t > 1/2) and d the signed distance to its outline, positive outside, cut off at the reach r;
    far from any contrail d / r is 1. Zero at p = g and nowhere below. Gradients do not depend on how wrong a pixel is:
    meant as an addition to another loss.
    """
    positive = (target > 0.5) & (counts > 0)
    return mean_of_pixels((torch.sigmoid(logits) - positive.float()) * signed_distance(positive, term.reach_px), counts)


def boundary_f1(logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, term: BoundaryF1Term) -> torch.Tensor:
    """Return 1 - F1 of the outlines of prediction and target (Bokhovkin and Burnaev 2019, arXiv 1905.07852).

    The outline of a mask are its pixels that have a neighbour outside, as max(1 - p over 3 x 3) - (1 - p); outlines
    match within the tolerance. Soft targets are taken as hard (t > 1/2). Zero at p = g, mean over the records; a record
    without outlines has F1 1, by the one pixel that is added to numerators and denominators.
    """
    valid = (counts > 0).float()
    p, g = torch.sigmoid(logits) * valid, (target > 0.5).float() * valid
    inner = valid * (1 - _largest(1 - valid, 1))  # the edge of what counts is no outline
    outlines = [(_largest(1 - mask, 1) - (1 - mask)) * inner for mask in (p, g)]
    of_p, of_g = outlines
    near_p, near_g = (_largest(outline, term.tolerance_px) for outline in outlines)
    precision = ((of_p * near_g).sum((-2, -1)) + _SMOOTH) / (of_p.sum((-2, -1)) + _SMOOTH)
    recall = ((of_g * near_p).sum((-2, -1)) + _SMOOTH) / (of_g.sum((-2, -1)) + _SMOOTH)
    return mean_of_records(1 - 2 * precision * recall / (precision + recall), counts)


def signed_distance(mask: torch.Tensor, reach: int) -> torch.Tensor:
    """Return the Euclidean distance to the outline of a mask over the reach, from -1 (inside) to 1.

    The outline runs between pixels: 1/2 from those on both sides.

    Shape:
        bool (B, H, W) to float32 (B, H, W).
    """
    to_inside, to_outside = (_distance(part, reach) - 0.5 for part in (mask, ~mask))
    return (torch.where(mask, -to_outside, to_inside) / reach).clamp(-1, 1)


def _distance(mask: torch.Tensor, reach: int) -> torch.Tensor:
    """Return the distance to the nearest pixel of the mask, exact up to `reach`, and more than it beyond.

    One axis after the other, as the square of the distance is a sum over axes (Felzenszwalb and Huttenlocher 2012).
    """
    far = 4.0 * reach**2
    squares = torch.where(mask, 0.0, far)
    for axis in (-1, -2):
        squares = reduce(torch.minimum, (near + shift**2 for shift, near in _shifts(squares, axis, reach, far)))
    return squares.sqrt()


def _largest(values: torch.Tensor, reach: int) -> torch.Tensor:
    """Return the largest value of the square window around each pixel; values are not negative.

    By shifted copies: the backward of pooling adds up in no fixed order on CUDA.
    """
    for axis in (-1, -2):
        values = reduce(torch.maximum, (near for _, near in _shifts(values, axis, reach, 0.0)))
    return values


def _shifts(values: torch.Tensor, axis: int, reach: int, fill: float) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield the values that lie -reach to reach pixels away along an axis; beyond the edge lies `fill`."""
    border = (reach, reach) if axis == -1 else (0, 0, reach, reach)
    padded, size = functional.pad(values, border, value=fill), values.shape[axis]
    for offset in range(-reach, reach + 1):
        yield offset, padded.narrow(axis, reach + offset, size)
