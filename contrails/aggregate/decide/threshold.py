"""The threshold: the exact optimum of global Dice on scored records, and how sure both are.

Probabilities are stored in 65,536 steps, so two histograms hold the Dice of every threshold and nothing is predicted
twice. What is fitted on records is judged on others: each fold is cut at the optimum of the other folds.
"""

from dataclasses import asdict, dataclass

import numpy as np

from contrails.aggregate.members.scored import LEVELS, Tally, redraws
from contrails.metrics import NUM_BINS, Histogram

_DRAWS = 1000
_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Confusion:
    """Pixels: true positives, positives in the prediction and in the label, all."""

    hits: int
    predicted: int
    actual: int
    pixels: int

    @property
    def dice(self) -> float:
        total = self.predicted + self.actual
        return 2 * self.hits / total if total else 0.0

    def __add__(self, other: "Confusion") -> "Confusion":
        return Confusion(*(mine + its for mine, its in zip(asdict(self).values(), asdict(other).values(), strict=True)))


def confusion_at(histogram: Histogram, threshold: float) -> Confusion:
    """Return the pixels of a histogram that a threshold makes."""
    first = level_of(threshold)
    hits, false = int(histogram.positive[first:].sum()), int(histogram.negative[first:].sum())
    actual = int(histogram.positive.sum())
    return Confusion(hits, hits + false, actual, actual + int(histogram.negative.sum()))


def level_of(threshold: float) -> int:
    """Return the smallest stored probability that reaches a threshold."""
    return round(threshold * (NUM_BINS - 1))


def cross_fitted(tally: Tally) -> dict[str, float]:
    """Return for each fold the threshold that is best for all others."""
    return {fold: tally.others(fold).best()[1] for fold in tally.by_fold}


def confusion_of_folds(tally: Tally, thresholds: dict[str, float]) -> Confusion:
    """Return the pixels of all folds, each at its own threshold."""
    by_fold = (confusion_at(histogram, thresholds[fold]) for fold, histogram in tally.by_fold.items())
    return sum(by_fold, Confusion(0, 0, 0, 0))


def cross_fitted_dice(tally: Tally, thresholds: dict[str, float]) -> float:
    """Return the global Dice over all folds, each at its own threshold."""
    return confusion_of_folds(tally, thresholds).dice


def threshold_interval(tally: Tally) -> dict[str, list[float]]:
    """Return the 95% interval of the best `threshold`, by a bootstrap over groups, among 256; empty of one group."""
    if len(tally.positive) < 2:
        return {}
    # the tail sums say the Dice at each level; the redraws weigh groups
    hits = tally.positive[:, ::-1].cumsum(1)[:, ::-1].astype(np.float64)
    total = hits + tally.negative[:, ::-1].cumsum(1)[:, ::-1] + tally.positive.sum(1, keepdims=True)
    weights = np.stack(list(redraws(len(hits), _DRAWS, "threshold")))
    summed = weights @ total
    curves = np.divide(2 * (weights @ hits), summed, out=np.zeros_like(summed), where=summed > 0)
    step = NUM_BINS // LEVELS
    return {"threshold": (np.percentile(curves.argmax(1), _INTERVAL) * step / (NUM_BINS - 1)).tolist()}


def dice_interval(groups: np.ndarray, counts: np.ndarray, purpose: str) -> list[float] | None:
    """Return the 95% interval of the global Dice of these counts, by a bootstrap over groups; None of fewer than two.

    Args:
        groups: number of each record's group, int64 (N,).
        counts: hits, predicted and actual of each record, int64 (3, N): those that the figure itself is made of.
        purpose: names the draws.
    """
    hits, predicted, actual = counts
    by_group = np.stack([np.bincount(groups, 2 * hits), np.bincount(groups, predicted + actual)])
    drawn = [by_group @ weights for weights in redraws(by_group.shape[1], _DRAWS, purpose)]
    dices = [twice_hits / total for twice_hits, total in drawn if total]
    return np.percentile(dices, _INTERVAL).tolist() if dices and by_group.shape[1] > 1 else None
