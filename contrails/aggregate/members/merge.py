"""How the probabilities of members become one, and how much each counts.

Every rule gives a number from 0 to 1 that a threshold cuts, so what follows (threshold, post-processing, submission)
does not ask which it was. Members are taken in the order of their names: the result does not depend on that of the
arguments.
"""

from collections.abc import Callable, Sequence

import torch

from contrails.metrics import NUM_BINS

_TOP = NUM_BINS - 1
_MORE_THAN_HALF = 0.5005
"""Above one half by more than rounding, below what one vote of a thousand adds to it."""

Merge = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _mean(probs: torch.Tensor, weights: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return torch.einsum("m...,m->...", probs, weights)


def _logits(probs: torch.Tensor, weights: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    # 0 and 1 have no logit; within half a step of the stored probabilities nothing is known
    return torch.sigmoid(_mean(torch.logit(probs, eps=0.25 / NUM_BINS), weights, weights))


def _median(probs: torch.Tensor, weights: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Return the smallest value that half of the weight does not exceed, or the middle where it falls between two."""
    ordered, order = probs.sort(dim=0)
    below = weights[order].cumsum(0)
    half = 0.5 * weights.sum()
    low = ordered.gather(0, (below < half - 1e-6).sum(0, keepdim=True))
    high = ordered.gather(0, (below <= half + 1e-6).sum(0, keepdim=True).clamp(max=len(probs) - 1))
    return (0.5 * (low + high))[0]


def _vote(probs: torch.Tensor, weights: torch.Tensor, thresholds: torch.Tensor) -> torch.Tensor:
    chosen = (probs * _TOP).round() >= (thresholds * _TOP).round().view(-1, *[1] * (probs.ndim - 1))
    return _mean(chosen.float(), weights, thresholds)


MERGES: dict[str, Merge] = {
    "mean": _mean,
    "logits": _logits,
    "median": _median,
    "median-mean": _median,
    "vote": _vote,
}
"""Rules by name; `median-mean` cuts the median at the mean of the members' thresholds, `vote` needs more than half."""


def merge(rule: str, probs: torch.Tensor, weights: Sequence[float], thresholds: Sequence[float]) -> torch.Tensor:
    """Merge members.

    Args:
        rule: a name in `MERGES`.
        probs: of each member.
        weights: of each member; what counts is their ratio.
        thresholds: of each member, for a vote.

    Shape:
        probs float32 (M, ...) to uint16-sized int32 (...), rounded as `contrails.metrics` says.
    """
    shares = torch.tensor(weights, dtype=torch.float32, device=probs.device)
    cuts = torch.tensor(thresholds, dtype=torch.float32, device=probs.device)
    merged = probs[0] if len(probs) == 1 and rule != "vote" else MERGES[rule](probs, shares / shares.sum(), cuts)
    return (merged * _TOP).round().to(torch.int32)


def fixed_threshold(rule: str, thresholds: Sequence[float], weights: Sequence[float]) -> float | None:
    """Return the threshold that a rule brings with it, None where it is fitted to the merged probabilities."""
    if rule == "vote":
        return _MORE_THAN_HALF
    if rule == "median-mean":
        return sum(t * w for t, w in zip(thresholds, weights, strict=True)) / sum(weights)
    return None
