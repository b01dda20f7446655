"""Losses that are a mean over pixels.

If a formula is defined for hard targets only, the loss for a soft target (the fraction of the annotators) is the mean
of the losses for each annotator: t * (loss of a positive pixel) + (1 - t) * (loss of a negative pixel). z is the logit,
p its sigmoid, t the target.
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

    With smoothing s the target is t (1 - s) + s / 2 (Szegedy et al. 2016, arXiv 1512.00567). The minimum is at p = t
    for w = 1, else at p = w t / (w t + 1 - t). For w = 1 its value is the entropy of the target, zero for hard targets.
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

    s_1 is the sigmoid of z, so this is the binary cross entropy of z, with its minimum at s_1 = t.
    """
    return binary_cross_entropy(logits, target, counts, BceTerm(smoothing=term.smoothing))


def focal(logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, term: FocalTerm) -> torch.Tensor:
    """Return the mean of -a t (1-p)^g log p - (1-a) (1-t) p^g log(1-p) (Lin et al. 2017, arXiv 1708.02002).

    Zero for a perfect prediction of a hard target. For soft targets the minimum is between t and 1/2.
    """
    log_p, log_q = functional.logsigmoid(logits), functional.logsigmoid(-logits)
    # powers are computed from logarithms, so that gradients stay finite if p underflows
    positive = -term.alpha * (term.gamma * log_q).exp() * log_p
    negative = -(1 - term.alpha) * (term.gamma * log_p).exp() * log_q
    return mean_of_pixels(target * positive + (1 - target) * negative, counts)


def quality_focal(
    logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, term: QualityFocalTerm
) -> torch.Tensor:
    """Return the mean of |t - p|^b times the binary cross entropy (Li et al. 2020, arXiv 2006.04388).

    Zero at p = t for hard and soft targets.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return mean_of_pixels((target - torch.sigmoid(logits)).abs() ** term.beta * entropy, counts)


def hinge(logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return the mean of t max(0, 1 - z) + (1 - t) max(0, 1 + z) (Cortes and Vapnik 1995).

    Zero for a hard target if z is right by a margin of 1; for soft targets the minimum is 2 min(t, 1 - t).
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

    The logarithms are clipped at `log_zero`. Zero for a perfect prediction of a hard target. For soft targets the
    reverse term, which is linear in p, moves the minimum from t towards 0 or 1.
    """
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    log_t, log_not_t = target.log().clamp(min=term.log_zero), (1 - target).log().clamp(min=term.log_zero)
    p = torch.sigmoid(logits)
    return mean_of_pixels(term.alpha * entropy - term.beta * (p * log_t + (1 - p) * log_not_t), counts)


def ohem(logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, term: OhemTerm) -> torch.Tensor:
    """Return the binary cross entropy over the hard pixels of each class, averaged over the two classes.

    After Shrivastava et al. 2016 (arXiv 1604.03540), but with a selection per class: contrails are 1% of the pixels,
    and the hardest pixels could all be of one class. A pixel is hard if its true class (t > 1/2) has a probability
    below `threshold`; at least the `min_keep` hardest pixels of each class are used. The selection has no gradient.
    Zero for a perfect prediction of a hard target; the entropy of the target for a soft one.
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
    """Return the selected candidates, bool (B, H, W): the hard ones, and at least the `min_keep` hardest."""
    ranked = torch.where(candidates, hardness, -1.0).flatten()
    last_kept = ranked.topk(min(term.min_keep, ranked.numel())).values[-1]
    return candidates & (hardness >= last_kept.clamp(max=-math.log(term.threshold)))
