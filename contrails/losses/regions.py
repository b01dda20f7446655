"""Losses on regions: one minus an overlap of prediction and target.

All are functions of I = sum min(p, t), P = sum p and T = sum t. For hard targets min(p, t) equals the usual product
p t. For soft targets the overlap by the product is not largest at p = t, but that by min(p, t) is (Wang et al. 2023,
"Dice semimetric losses", arXiv 2303.16296). So all of these losses have their minimum, zero, at p = t. `smooth` (s) is
added to numerator and denominator.

With `over = "record"` the loss is the mean of the losses of the records, where a record without contrails has the same
weight as any other. "batch" sums over the batch first. "global", like the metric, also includes the sums of earlier
steps (see `contrails.losses.total`).
"""

import math

import torch

from contrails.losses.reduce import mean_of_records
from contrails.recipe.loss import DiceTerm, JaccardTerm, LogDiceTerm, RegionTerm, TverskyTerm

_EPSILON = 1e-4


def overlap(logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, term: RegionTerm) -> torch.Tensor:
    """Return I, P and T of each record or of the batch.

    Shape:
        logits, target, counts (B, H, W) to (3, B) for a term over records, else (3,).
    """
    counts = (counts > 0).to(logits.dtype) if term.over == "record" else counts
    p, t = torch.sigmoid(logits) * counts, target * counts
    axes = (-2, -1) if term.over == "record" else (-3, -2, -1)
    return torch.stack([torch.minimum(p, t).sum(axes), p.sum(axes), t.sum(axes)])


def dice(sums: torch.Tensor, term: DiceTerm) -> torch.Tensor:
    """Return 1 - (2 I + s) / (P + T + s) (Milletari et al. 2016, arXiv 1606.04797)."""
    return 1 - _dice(sums, term)


def log_dice(sums: torch.Tensor, term: LogDiceTerm) -> torch.Tensor:
    """Return (-log Dice)^g, with the smoothed Dice of `dice` (Wong et al. 2018, arXiv 1809.00076).

    Computed as (x + e)^g - e^g with e = 1e-4, because for g < 1 the gradient of x^g is infinite at x = 0.
    """
    return torch.pow(_EPSILON - _dice(sums, term).log(), term.gamma) - math.pow(_EPSILON, term.gamma)


def jaccard(sums: torch.Tensor, term: JaccardTerm) -> torch.Tensor:
    """Return 1 - (I + s) / (P + T - I + s) (Rahman and Wang 2016)."""
    both, p, t = sums.unbind()
    return 1 - (both + term.smooth) / (p + t - both + term.smooth)


def tversky(sums: torch.Tensor, term: TverskyTerm) -> torch.Tensor:
    """Return 1 - (I + s) / (I + a (P - I) + b (T - I) + s) (Salehi et al. 2017, arXiv 1706.05721).

    P - I are the false positives and T - I the false negatives; b > a favours recall over precision.
    """
    both, p, t = sums.unbind()
    return 1 - (both + term.smooth) / (both + term.alpha * (p - both) + term.beta * (t - both) + term.smooth)


def over_records(losses: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the mean of the losses of records (B,); a scalar, the loss of a whole batch, is returned unchanged."""
    return mean_of_records(losses, counts) if losses.ndim else losses


def _dice(sums: torch.Tensor, term: RegionTerm) -> torch.Tensor:
    both, p, t = sums.unbind()
    dice: torch.Tensor = (2 * both + term.smooth) / (p + t + term.smooth)
    return dice
