"""Merging the probabilities of members.

Every rule returns a number from 0 to 1 that a threshold cuts, so later steps (threshold, post-processing, submission)
do not depend on the rule. Members are sorted by name, so that the result does not depend on the order of the arguments.
"""

from collections.abc import Callable, Sequence

import torch

from contrails.metrics import NUM_BINS

_TOP = NUM_BINS - 1
_MORE_THAN_HALF = 0.5005
"""Threshold of a majority: above one half by more than rounding errors, and by less than one vote in a thousand."""

Merge = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _mean(probs: torch.Tensor, weights: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return torch.einsum("m...,m->...", probs, weights)


def _logits(probs: torch.Tensor, weights: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    # 0 and 1 have no finite logit, so they are moved by a quarter of a step, less than the rounding of half a step
    return torch.sigmoid(_mean(torch.logit(probs, eps=0.25 / NUM_BINS), weights, weights))


def _median(probs: torch.Tensor, weights: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """Return the weighted median: the mean of two values if exactly half of the weight is below."""
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
"""Rules by name. `median-mean` cuts the median at the mean of the members' thresholds; `vote` needs a majority."""


def merge(rule: str, probs: torch.Tensor, weights: Sequence[float], thresholds: Sequence[float]) -> torch.Tensor:
    """Merge members.

    Args:
        rule: a name in `MERGES`.
        probs: probabilities of each member.
        weights: weight of each member; only their ratios matter.
        thresholds: threshold of each member, for a vote.

    Shape:
        probs float32 (M, ...) to int32 (...) in the range of uint16, rounded as in `contrails.metrics`.
    """
    shares = torch.tensor(weights, dtype=torch.float32, device=probs.device)
    cuts = torch.tensor(thresholds, dtype=torch.float32, device=probs.device)
    merged = probs[0] if len(probs) == 1 and rule != "vote" else MERGES[rule](probs, shares / shares.sum(), cuts)
    return (merged * _TOP).round().to(torch.int32)


def fixed_threshold(rule: str, thresholds: Sequence[float], weights: Sequence[float]) -> float | None:
    """Return the threshold that a rule defines; None if it is fitted on the merged probabilities."""
    if rule == "vote":
        return _MORE_THAN_HALF
    if rule == "median-mean":
        return sum(t * w for t, w in zip(thresholds, weights, strict=True)) / sum(weights)
    return None
