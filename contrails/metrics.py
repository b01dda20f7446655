"""Global Dice at every threshold, computed from two histograms.

Probabilities are rounded to 16 bits: p becomes round(65535 p). A threshold t means "positive where the rounded
probability is at least t" and is written as the float t / 65535. Two histograms of 65,536 bins, of positive and of
negative pixels, are enough for every threshold, and can be added over batches, records and folds.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

NUM_BINS = 65_536


@dataclass(frozen=True)
class Histogram:
    """Number of pixels at each rounded probability, int64 (65536,), of `positive` and of `negative` pixels."""

    positive: np.ndarray
    negative: np.ndarray

    @classmethod
    def empty(cls) -> Self:
        return cls(np.zeros(NUM_BINS, np.int64), np.zeros(NUM_BINS, np.int64))

    def __add__(self, other: "Histogram") -> "Histogram":
        return Histogram(self.positive + other.positive, self.negative + other.negative)

    def dice(self, threshold: float) -> float:
        """Return 2 TP / (2 TP + FP + FN) at one threshold."""
        return float(self.dice_curve()[round(threshold * (NUM_BINS - 1))])

    def dice_curve(self) -> np.ndarray:
        """Return the global Dice at the threshold of each bin, float64 (65536,); 0 where the denominator is 0."""
        true_positive = self.positive[::-1].cumsum()[::-1]
        predicted = true_positive + self.negative[::-1].cumsum()[::-1]
        # 2 TP + FP + FN = predicted + actual
        total = predicted + self.positive.sum()
        curve: np.ndarray = np.divide(2.0 * true_positive, total, out=np.zeros(NUM_BINS), where=total > 0)
        return curve

    def best(self) -> tuple[float, float]:
        """Return the largest Dice and its threshold; of several equal bins in a row, the middle one."""
        curve = self.dice_curve()
        first = int(curve.argmax())
        others = np.flatnonzero(curve[first:] != curve[first])
        last = first + (int(others[0]) if len(others) else len(curve) - first) - 1
        return float(curve[first]), (first + last) // 2 / (NUM_BINS - 1)


def roc_auc(histogram: Histogram) -> float:
    """Return the area under the ROC curve, NaN if one class is missing.

    It is the probability that a positive has a larger value than a negative; equal values count one half.
    """
    pairs = int(histogram.positive.sum()) * int(histogram.negative.sum())
    below = histogram.negative.cumsum() - histogram.negative / 2
    return float((histogram.positive * below).sum() / pairs) if pairs else float("nan")


def average_precision(histogram: Histogram) -> float:
    """Return the area under the precision-recall curve, the sum of (R_n - R_n-1) P_n; NaN without positive pixels."""
    hits = histogram.positive[::-1].cumsum().astype(np.float64)
    predicted = hits + histogram.negative[::-1].cumsum()
    precision = np.divide(hits, predicted, out=np.zeros(NUM_BINS), where=predicted > 0)
    return float((precision * histogram.positive[::-1]).sum() / hits[-1]) if hits[-1] else float("nan")
