"""The Lovász hinge: the convex surrogate of the Jaccard loss (Berman et al. 2018, arXiv 1705.08790)."""

import torch
from torch.nn import functional

from contrails.losses.reduce import mean_of_records
from contrails.recipe.loss import LovaszHingeTerm


def lovasz_hinge(
    logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor, term: LovaszHingeTerm
) -> torch.Tensor:
    """Return the sum of g_i relu(m_i), with margins m = 1 - z (2t - 1) and g the Lovász extension's gradient at m.

    Soft targets are thresholded (t > 1/2), as the Jaccard index is defined on sets. The loss is zero if all pixels are
    right by a margin of 1. The symmetric form is the mean over both classes with elu(m) + 1 instead of relu(m), so that
    pixels beyond the margin have a gradient too; it tends to zero as the logits of right pixels grow.
    """
    positive, valid = target > 0.5, counts > 0
    if term.over == "batch":
        logits, positive, valid = (tensor.flatten()[None] for tensor in (logits, positive, valid))
        counts_of_loss = counts[None].amax((1, 2, 3), keepdim=True)[..., 0]
    else:
        logits, positive, valid = (tensor.flatten(1) for tensor in (logits, positive, valid))
        counts_of_loss = counts
    losses = _of_class(logits, positive, valid, term)
    if term.symmetric:
        losses = (losses + _of_class(-logits, ~positive, valid, term)) / 2
    return mean_of_records(losses, counts_of_loss)


def _of_class(logits: torch.Tensor, positive: torch.Tensor, valid: torch.Tensor, term: LovaszHingeTerm) -> torch.Tensor:
    """Return the loss of each row; shape: (B, N) to (B,)."""
    margins = 1 - torch.where(positive, logits, -logits)
    rectified = functional.elu(margins) + 1 if term.symmetric else functional.relu(margins)
    # Gradients through a sort, and cumulative sums of floats, are not deterministic on CUDA. Here the sort determines
    # only the weights g, which are piecewise constant and need no gradient, and the cumulative sums are of integers.
    order = margins.detach().masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
    # ignored pixels rank last and get weight 0
    ranked, counted = positive.gather(1, order), valid.gather(1, order)
    total = (positive & valid).sum(1, keepdim=True)
    both = total - (ranked & counted).cumsum(1)
    either = total + (~ranked & counted).cumsum(1)
    jaccard = 1 - both.to(margins.dtype) / either.clamp(min=1).to(margins.dtype)
    steps = torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], dim=1)
    weights = torch.zeros_like(margins).scatter_(1, order, steps)
    return (rectified * weights).sum(1)
