"""Augmentation that combines a sample with other samples of its batch.

Label pixels on a seam are ignored if they show both sides of it (labels can be half a pixel off their images).
"""

import math

import numpy as np
import torch
from scipy.special import betaincinv
from torch.nn import functional

from contrails.inputs.augment.dihedral import shift_label
from contrails.inputs.augment.rectangles import covered
from contrails.inputs.augment.samples import Samples
from contrails.inputs.transfer import to_device
from contrails.recipe.augment import CopyPasteSection, CutmixSection, MixupSection


def partners(indices: np.ndarray, draws: np.ndarray, count: int) -> np.ndarray:
    """Return for each index another sample of a batch of `count`, or itself in a batch of one.

    Shape:
        indices int64 (B,) and draws (B,) from 0 to 1, to int64 (B,).
    """
    others: np.ndarray = (indices + 1 + np.floor(draws * (count - 1)).astype(np.int64)) % count
    return others


def mixup(own: Samples, other: Samples, draws: np.ndarray, section: MixupSection) -> Samples:
    """Return w own + (1 - w) other, with w from Beta(alpha, alpha) (Zhang et al. 2018, arXiv 1710.09412).

    With the target "or" the label is the larger of both, because contrails of either image are visible.

    Shape:
        draws (B,) from 0 to 1.
    """
    weights = to_device(betaincinv(section.alpha, section.alpha, draws), own.target.device, torch.float32)
    images = torch.lerp(other.images, own.images, weights.view(-1, 1, 1, 1, 1))
    if section.target == "or":
        target = torch.maximum(own.target, other.target)
    else:
        target = torch.lerp(other.target, own.target, weights.view(-1, 1, 1))
    valid = own.valid & other.valid
    return Samples(images, target * valid, valid, _lesser(own, other))


def cutmix(
    own: Samples, other: Samples, draws: np.ndarray, section: CutmixSection, offset_px: tuple[float, float]
) -> Samples:
    """Return samples with a rectangle of the others; its area is drawn from Beta(alpha, alpha) (Yun et al. 2019).

    Shape:
        draws (B, 3) from 0 to 1.
    """
    height, width = own.target.shape[-2:]
    side = np.sqrt(betaincinv(section.alpha, section.alpha, draws[:, 0]))
    sides = (side[:, None] * [height, width]).round()
    first = (draws[:, 1:3] * ([height, width] - sides)).round()
    return _pasted(own, other, np.concatenate([first, first + sides], axis=1), offset_px)


def mosaic(own: Samples, others: list[Samples], draws: np.ndarray, offset_px: tuple[float, float]) -> Samples:
    """Return samples of four quarters, each from its own position, that meet near the centre (Bochkovskiy et al. 2020).

    Shape:
        draws (B, 2) from 0 to 1.
    """
    height, width = own.target.shape[-2:]
    middle = ((0.25 + 0.5 * draws) * [height, width]).round()
    for quarter, other in enumerate(others, start=1):
        corners = np.empty((len(middle), 4))
        for axis, (size, second) in enumerate(((height, quarter & 2), (width, quarter & 1))):
            # beyond the edges of the image, as labels with an offset extend beyond them
            corners[:, axis] = middle[:, axis] if second else -size
            corners[:, 2 + axis] = 2 * size if second else middle[:, axis]
        own = _pasted(own, other, corners, offset_px)
    return own


def copy_paste(own: Samples, other: Samples, section: CopyPasteSection, offset_px: tuple[float, float]) -> Samples:
    """Paste the contrails of other samples, with a margin, into negative samples (Ghiasi et al. 2021).

    A contrail is where the target is above 1/2. Samples with a contrail of their own are not changed.
    """
    negative = ~((own.target > 0.5) & own.valid).any(-1).any(-1)
    marked = ((other.target > 0.5) & other.valid).float() * negative.view(-1, 1, 1)
    around = _grown(marked, section.margin_px) > 0
    taken = torch.zeros_like(marked)  # image pixels that overlap a marked label pixel
    for down in {math.floor(offset_px[0]), math.ceil(offset_px[0])}:
        for right in {math.floor(offset_px[1]), math.ceil(offset_px[1])}:
            taken = torch.maximum(taken, shift_label(marked, (-down, -right), 0.0))
    taken = _grown(taken, section.margin_px)
    images = torch.where(taken[:, None, None] > 0, other.images, own.images)
    valid = own.valid & (other.valid | ~around)
    return Samples(images, torch.where(around, other.target, own.target) * valid, valid, _lesser(own, other))


def _pasted(own: Samples, other: Samples, corners: np.ndarray, offset_px: tuple[float, float]) -> Samples:
    """Return samples with rectangles of others; `corners` as in `covered`."""
    shape, device = own.target.shape, own.target.device
    inside = covered(corners, shape, (0.0, 0.0), device)[:, None, None] > 0
    share = covered(corners, shape, offset_px, device)
    valid = torch.where(share > 0, other.valid, own.valid) & ((share == 0) | (share == 1))
    target = torch.where(share > 0, other.target, own.target)
    return Samples(torch.where(inside, other.images, own.images), target * valid, valid, _lesser(own, other))


def _lesser(own: Samples, other: Samples) -> torch.Tensor | None:
    """Return the weights of combined samples: the smaller weight of the two."""
    if own.weights is None or other.weights is None:
        return None
    return torch.minimum(own.weights, other.weights)


def _grown(mask: torch.Tensor, margin: int) -> torch.Tensor:
    return functional.max_pool2d(mask[:, None], 2 * margin + 1, stride=1, padding=margin)[:, 0] if margin else mask
