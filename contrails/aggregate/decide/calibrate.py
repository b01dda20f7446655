"""Calibration: whether a fraction p of the pixels with probability p is positive, and thresholds without labels.

Temperature scaling (one parameter) and Platt scaling (two) map the logit to a*logit + b. They are fitted on the
histogram of stored probabilities, so a fit takes milliseconds for any number of records.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

from contrails.metrics import NUM_BINS, Histogram

_RELIABILITY_BINS = 10
_LOGITS = np.log((np.arange(NUM_BINS) + 0.5) / (NUM_BINS - np.arange(NUM_BINS) - 0.5))
"""Logit of each stored probability; half a step is added so that 0 and 1 stay finite."""


@dataclass(frozen=True)
class Calibration:
    """Calibrated probability = sigmoid(slope * logit + bias); temperature scaling is slope = 1 / T without bias."""

    slope: float = 1.0
    bias: float = 0.0

    def probabilities(self) -> np.ndarray:
        """Return the calibrated probability of each stored one, float64 (65536,)."""
        calibrated: np.ndarray = expit(self.slope * _LOGITS + self.bias)
        return calibrated


def fit(histogram: Histogram, *, with_bias: bool) -> Calibration:
    """Return the calibration with the smallest cross entropy; the identity if all pixels have the same label."""
    positive, all_of = histogram.positive.astype(np.float64), (histogram.positive + histogram.negative).astype(float)
    if not 0 < positive.sum() < all_of.sum():
        return Calibration()
    features = np.stack([_LOGITS, np.ones(NUM_BINS)])[: 1 + with_bias]
    share = 1 / all_of.sum()  # use the mean over pixels, so that the solver's tolerances do not depend on their number

    def loss(found: np.ndarray) -> float:
        mean: float = share * _loss(found @ features, positive, all_of)
        return mean

    def gradient(found: np.ndarray) -> np.ndarray:
        slopes: np.ndarray = share * (features @ (all_of * expit(found @ features) - positive))
        return slopes

    def curvature(found: np.ndarray) -> np.ndarray:
        probs = expit(found @ features)
        second: np.ndarray = share * ((features * (all_of * probs * (1 - probs))) @ features.T)
        return second

    start = np.array([1.0, 0.0])[: 1 + with_bias]
    found = minimize(loss, start, jac=gradient, hess=curvature, method="trust-exact", options={"gtol": 1e-10}).x
    return Calibration(float(found[0]), float(found[1]) if with_bias else 0.0)


def reliability(histogram: Histogram, calibration: Calibration) -> dict[str, Any]:
    """Return cross entropy, expected calibration error, and (mean probability, positive fraction, pixels) per bin."""
    probs = calibration.probabilities()
    all_of = histogram.positive + histogram.negative
    bins = np.minimum((probs * _RELIABILITY_BINS).astype(int), _RELIABILITY_BINS - 1)
    pixels, expected, found = (
        np.bincount(bins, weights, _RELIABILITY_BINS) for weights in (all_of, all_of * probs, histogram.positive)
    )
    filled = pixels > 0
    logits = calibration.slope * _LOGITS + calibration.bias
    return {
        "cross_entropy": _loss(logits, histogram.positive, all_of) / max(int(all_of.sum()), 1),
        "calibration_error": float(np.abs(expected - found).sum() / max(pixels.sum(), 1)),
        "bins": np.stack([expected, found, pixels])[:, filled].T.tolist(),
    }


def label_free(counts: np.ndarray, calibration: Calibration) -> dict[str, float]:
    """Return thresholds that need no labels, from the number of pixels of each stored probability, int64 (65536,).

    `expected_dice` maximises the Dice expected from calibrated probabilities (and the IoU, which is monotonic in it).
    `half_dice` is where the calibrated probability reaches half of that Dice (Lipton, Elkan, Naryanaswamy 2014). If
    both differ from the optimum on labels, the probabilities are not calibrated.
    """
    probs = calibration.probabilities()
    promised = counts * probs
    total = counts[::-1].cumsum()[::-1] + promised.sum()
    curve = np.divide(2 * promised[::-1].cumsum()[::-1], total, out=np.zeros(NUM_BINS), where=total > 0)
    dice = float(curve.max())
    half = int(np.searchsorted(probs, dice / 2)) if calibration.slope > 0 else NUM_BINS // 2
    top = NUM_BINS - 1
    return {
        "dice": dice,
        "iou": dice / (2 - dice),
        "expected_dice": int(curve.argmax()) / top,
        "half_dice": min(half, top) / top,
    }


def _loss(logits: np.ndarray, positive: np.ndarray, all_of: np.ndarray) -> float:
    """Return the summed cross entropy in nats: log(1 + e^x) - t x, over all pixels."""
    return float((all_of * np.logaddexp(0, logits) - positive * logits).sum())
