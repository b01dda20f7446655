"""Losses that are a mean over pixels.

Where a formula is for hard targets only, a soft one is taken for what it is, the share of annotators: the loss is the
mean over the annotators, t * (loss of a positive pixel) + (1 - t) * (loss of a negative one). z is the logit, p its
sigmoid, t the target.
"""

import math

import torch
from torch.nn import functional

from contrails.losses.reduce import mean_of_pixels
from contrails.recipe.loss import (
    BceTerm,
    FocalTerm,
    OhemTerm,
    QualityFocalTerm,
    SoftmaxCeTerm,
    SymmetricCeTerm,
)

_PLAIN = BceTerm()


def binary_cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, term: BceTerm = _PLAIN
) -> torch.Tensor:
    """Return the mean of -w t log p - (1 - t) log(1 - p), in nats; w is `pos_weight`.

    With smoothing s the target is t (1 - s) + s / 2 (Szegedy et al. 2016, arXiv 1512.00567). The minimum lies at p = t
    for w = 1, at w t / (w t + 1 - t) else; it is the target's own entropy, zero for hard ones.
    """
    assert term.pos_weight != "balanced", "resolved when the loss is built"
    smooth = target * (1 - term.smoothing) + term.smoothing / 2 if term.smoothing else target
    losses = functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
    if term.pos_weight != 1:
        losses = losses - (term.pos_weight - 1) * smooth * functional.logsigmoid(logits)
    return mean_of_pixels(losses, counts)


def softmax_cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, term: SoftmaxCeTerm
) -> torch.Tensor:
    """Return the mean of -(1 - t) log s_0 - t log s_1, with s the softmax of two logits of which z is the difference.

    s_1 is the sigmoid of z, so that this is the binary cross entropy of the difference, with its minimum at s_1 = t.
    """
    return binary_cross_entropy(logits, target, counts, BceTerm(smoothing=term.smoothing))


def focal(logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, term: FocalTerm) -> torch.Tensor:
    """Return the mean of -a t (1-p)^g log p - (1-a) (1-t) p^g log(1-p) (Lin et al. 2017, arXiv 1708.02002).

    Zero for the perfect prediction of a hard target. For soft ones the minimum lies between t and 1/2.
    """
    log_p, log_q = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    # powers by way of logarithms: their gradients stay finite where p underflows
    positive = -term.alpha * (term.gamma * log_q).exp() * log_p
    negative = -(1 - term.alpha) * (term.gamma * log_p).exp() * log_q
    return mean_of_pixels(target * positive + (1 - target) * negative, counts)


def quality_focal(
    logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, term: QualityFocalTerm
) -> torch.Tensor:
    """Return the mean of |t - p|^b times the binary cross entropy (Li et al. 2020, arXiv 2006.04388).

    Zero at p = t, for soft targets too.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return mean_of_pixels((target - torch.sigmoid(logits)).abs() ** term.beta * entropy, counts)


def hinge(logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the mean of t max(0, 1 - z) + (1 - t) max(0, 1 + z) (Cortes and Vapnik 1995).

    Zero where a hard target is right by a margin of 1; 2 min(t, 1 - t) for soft ones.
    """
    losses = target * functional.relu(1 - logits) + (1 - target) * functional.relu(1 + logits)
    return mean_of_pixels(losses, counts)


def mse(logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the mean of (p - t)^2 (Brier 1950); zero at p = t."""
    return mean_of_pixels((torch.sigmoid(logits) - target) ** 2, counts)


def symmetric_cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, term: SymmetricCeTerm
) -> torch.Tensor:
    """Return the mean of a * cross entropy - b (p log t + (1-p) log(1-t)) (Wang et al. 2019, arXiv 1908.06112).

    The logarithms are cut off at `log_zero`. Zero for the perfect prediction of a hard target; for soft ones the
    reverse part, which is linear in p, draws the minimum from t towards 0 or 1.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    log_t, log_not_t = target.log().clamp(min=term.log_zero), (1 - target).log().clamp(min=term.log_zero)
    p = torch.sigmoid(logits)
    return mean_of_pixels(term.alpha * entropy - term.beta * (p * log_t + (1 - p) * log_not_t), counts)


def ohem(logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, term: OhemTerm) -> torch.Tensor:
    """Return the binary cross entropy over the hard pixels of each class, averaged over the two classes.

    After Shrivastava et al. 2016 (arXiv 1604.03540), with the selection made per class: contrails are 1% of the pixels,
    and all of the hardest could be of one class. Hard is a pixel whose true class (t > 1/2) has a probability below
    `threshold`; at least the `min_keep` hardest of each class count. Which ones carries no gradient. Zero for the
    perfect prediction of a hard target, its own entropy for a soft one.
    """
    losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    positive = target > 0.5
    hardness = functional.softplus(torch.where(positive, -logits, logits)).detach()  # -log p of the true class
    parts = [
        mean_of_pixels(losses, counts * _hardest(hardness, of_class & (counts > 0), term))
        for of_class in (positive, ~positive)
    ]
    present = [(of_class & (counts > 0)).any() for of_class in (positive, ~positive)]
    return (parts[0] + parts[1]) / (present[0].int() + present[1].int()).clamp(min=1)


def _hardest(hardness: torch.Tensor, candidates: torch.Tensor, term: OhemTerm) -> torch.Tensor:
    """Return which candidates count: the hard ones, and at least `min_keep` where there are so many."""
    ranked = torch.where(candidates, hardness, -1.0).flatten()
    last_kept = ranked.topk(min(term.min_keep, ranked.numel())).values[-1]
    return candidates & (hardness >= last_kept.clamp(max=-math.log(term.threshold)))
