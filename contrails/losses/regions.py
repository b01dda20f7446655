"""Losses on regions: one minus an overlap of prediction and target.

All are made of I = sum min(p, t), P = sum p and T = sum t. On hard targets min(p, t) is the usual product p t. On soft
ones the product is not largest at p = t; the minimum is (Wang et al. 2023, "Dice semimetric losses", arXiv 2303.16296),
so that all of these losses are zero at p = t and nowhere below. `smooth` (s) is added to numerator and denominator.

`over = "record"` is the mean of the records' losses: a record without contrails counts as much as any other. "batch"
sums over the batch first. "global", as the metric does, sums over the steps before too (see `contrails.losses.total`).
"""

import math

import torch

from contrails.losses.reduce import mean_of_records
from contrails.recipe.loss import DiceTerm, JaccardTerm, LogDiceTerm, RegionTerm, TverskyTerm

_EPSILON = 1e-4


def overlap(logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, term: RegionTerm) -> torch.Tensor:
    """Return I, P and T, of each record or of all of them.

    Shape:
        logits, target, counts (B, H, W) to (3, B) where the term is over records, else (3,).
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

    Made (x + e)^g - e^g with e = 1e-4, since for g < 1 the gradient of x^g at the perfect prediction is infinite.
    """
    return torch.pow(_EPSILON - _dice(sums, term).log(), term.gamma) - math.pow(_EPSILON, term.gamma)


def jaccard(sums: torch.Tensor, term: JaccardTerm) -> torch.Tensor:
    """Return 1 - (I + s) / (P + T - I + s) (Rahman and Wang 2016)."""
    both, p, t = sums.unbind()
    return 1 - (both + term.smooth) / (p + t - both + term.smooth)


def tversky(sums: torch.Tensor, term: TverskyTerm) -> torch.Tensor:
    """Return 1 - (I + s) / (I + a (P - I) + b (T - I) + s) (Salehi et al. 2017, arXiv 1706.05721).

    P - I are the false positives and T - I the false negatives: b > a finds more and errs more.
    """
    both, p, t = sums.unbind()
    return 1 - (both + term.smooth) / (both + term.alpha * (p - both) + term.beta * (t - both) + term.smooth)


def over_records(losses: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the loss of a batch from that of its records (B,), or from one that is of all of them already."""
    return mean_of_records(losses, counts) if losses.ndim else losses


def _dice(sums: torch.Tensor, term: RegionTerm) -> torch.Tensor:
    both, p, t = sums.unbind()
    dice: torch.Tensor = (2 * both + term.smooth) / (p + t + term.smooth)
    return dice
