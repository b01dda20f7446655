"""Global Dice at every threshold, from two histograms.

Probabilities are rounded to 16 bits, p to round(65535 p); a threshold t means "contrail where the rounded probability
is at least t", written as the float t / 65535. Two histograms of 65,536 bins (pixels that are contrail, pixels that are
not) hold all that any threshold needs, and add up over batches, records and folds.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

NUM_BINS = 65_536


@dataclass(frozen=True)
class Histogram:
    """Counts of rounded probabilities, int64 (65536,): `positive` on contrail pixels, `negative` on the others."""

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
        """Return the global Dice at the threshold of each bin, float64 (65536,); 0 where nothing is there to find."""
        true_positive = self.positive[::-1].cumsum()[::-1]
        predicted = true_positive + self.negative[::-1].cumsum()[::-1]
        # 2 TP + FP + FN = predicted + actual
        total = predicted + self.positive.sum()
        curve: np.ndarray = np.divide(2.0 * true_positive, total, out=np.zeros(NUM_BINS), where=total > 0)
        return curve

    def best(self) -> tuple[float, float]:
        """Return the largest Dice and its threshold: the middle of the best bins where several in a row are equal."""
        curve = self.dice_curve()
        first = int(curve.argmax())
        others = np.flatnonzero(curve[first:] != curve[first])
        last = first + (int(others[0]) if len(others) else len(curve) - first) - 1
        return float(curve[first]), (first + last) // 2 / (NUM_BINS - 1)


def roc_auc(histogram: Histogram) -> float:
    """Return the area under the ROC curve: how often a positive has the larger probability; NaN without two classes.

    Equal probabilities count as half.
    """
    pairs = int(histogram.positive.sum()) * int(histogram.negative.sum())
    below = histogram.negative.cumsum() - histogram.negative / 2
    return float((histogram.positive * below).sum() / pairs) if pairs else float("nan")


def average_precision(histogram: Histogram) -> float:
    """Return the area under the precision-recall curve, the sum of (R_n - R_n-1) P_n; NaN without contrail pixels."""
    hits = histogram.positive[::-1].cumsum().astype(np.float64)
    predicted = hits + histogram.negative[::-1].cumsum()
    precision = np.divide(hits, predicted, out=np.zeros(NUM_BINS), where=predicted > 0)
    return float((precision * histogram.positive[::-1]).sum() / hits[-1]) if hits[-1] else float("nan")
