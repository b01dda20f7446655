"""The threshold: the exact optimum of global Dice on scored records, with 95% intervals of threshold and Dice.

Probabilities are stored in 65,536 steps, so two histograms give the Dice at every threshold without predicting again.
A fitted value is scored on other records: each fold is cut at the optimum of the other folds.
"""

from dataclasses import asdict, dataclass

import numpy as np

from contrails.aggregate.members.scored import LEVELS, Tally, redraws
from contrails.metrics import NUM_BINS, Histogram

_DRAWS = 1000
_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Confusion:
    """Numbers of pixels: true positives, predicted positives, actual positives, all."""

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
    """Return the counts at a threshold from a histogram."""
    first = level_of(threshold)
    hits, false = int(histogram.positive[first:].sum()), int(histogram.negative[first:].sum())
    actual = int(histogram.positive.sum())
    return Confusion(hits, hits + false, actual, actual + int(histogram.negative.sum()))


def level_of(threshold: float) -> int:
    """Return the smallest stored probability that reaches a threshold."""
    return round(threshold * (NUM_BINS - 1))


def cross_fitted(tally: Tally) -> dict[str, float]:
    """Return for each fold the threshold that is best on all other folds."""
    return {fold: tally.others(fold).best()[1] for fold in tally.by_fold}


def confusion_of_folds(tally: Tally, thresholds: dict[str, float]) -> Confusion:
    """Return the counts over all folds, each at its own threshold."""
    by_fold = (confusion_at(histogram, thresholds[fold]) for fold, histogram in tally.by_fold.items())
    return sum(by_fold, Confusion(0, 0, 0, 0))


def cross_fitted_dice(tally: Tally, thresholds: dict[str, float]) -> float:
    """Return the global Dice over all folds, each at its own threshold."""
    return confusion_of_folds(tally, thresholds).dice


def threshold_interval(tally: Tally) -> dict[str, list[float]]:
    """Return the 95% interval of the best `threshold`, bootstrapped over groups on 256 levels; empty for one group."""
    if len(tally.positive) < 2:
        return {}
    # tail sums give the counts at each level; each redraw weights the groups
    hits = tally.positive[:, ::-1].cumsum(1)[:, ::-1].astype(np.float64)
    total = hits + tally.negative[:, ::-1].cumsum(1)[:, ::-1] + tally.positive.sum(1, keepdims=True)
    weights = np.stack(list(redraws(len(hits), _DRAWS, "threshold")))
    summed = weights @ total
    curves = np.divide(2 * (weights @ hits), summed, out=np.zeros_like(summed), where=summed > 0)
    step = NUM_BINS // LEVELS
    return {"threshold": (np.percentile(curves.argmax(1), _INTERVAL) * step / (NUM_BINS - 1)).tolist()}


def dice_interval(groups: np.ndarray, counts: np.ndarray, purpose: str) -> list[float] | None:
    """Return the 95% interval of the global Dice of these counts, bootstrapped over groups; None for one group.

    Args:
        groups: number of each record's group, int64 (N,).
        counts: hits, predicted and actual of each record, int64 (3, N), from which the score itself is computed.
        purpose: name of the random draws.
    """
    hits, predicted, actual = counts
    by_group = np.stack([np.bincount(groups, 2 * hits), np.bincount(groups, predicted + actual)])
    drawn = [by_group @ weights for weights in redraws(by_group.shape[1], _DRAWS, purpose)]
    dices = [twice_hits / total for twice_hits, total in drawn if total]
    return np.percentile(dices, _INTERVAL).tolist() if dices and by_group.shape[1] > 1 else None
