"""Weights of several runs, fitted on the records that each run predicted out of fold.

Within one run every record has only one out-of-fold prediction, so folds cannot be compared with each other.
"""

from collections.abc import Sequence

import numpy as np
import torch

from contrails.aggregate.members.merge import merge
from contrails.metrics import NUM_BINS, Histogram

_ROUNDS = 12
MAX_PIXELS = 2_000_000
"""Largest number of pixels that weights are fitted on, taken evenly from all records."""


def fit_weights(rule: str, probs: torch.Tensor, hard: np.ndarray, thresholds: Sequence[float]) -> list[float]:
    """Return the weight of each run by greedy selection: in each round the run that improves the Dice most is added.

    Caruana et al. 2004, "Ensemble selection from libraries of models". A run can be added several times; the few
    choices limit overfitting.
    Shape:
        probs float32 (runs, pixels); hard bool (pixels,).
    """
    best_dice, best = -1.0, [1.0] * len(probs)
    counts = [0.0] * len(probs)
    for _ in range(_ROUNDS):
        trials = []
        for joins in range(len(probs)):
            trial = list(counts)
            trial[joins] += 1
            trials.append(trial)
        scores = [_dice(rule, probs, hard, trial, thresholds) for trial in trials]
        counts = trials[int(np.argmax(scores))]
        if max(scores) > best_dice:
            best_dice, best = max(scores), counts
    return [count / sum(best) for count in best]


def _dice(
    rule: str, probs: torch.Tensor, hard: np.ndarray, weights: Sequence[float], thresholds: Sequence[float]
) -> float:
    chosen = [number for number, weight in enumerate(weights) if weight]
    merged = merge(rule, probs[chosen], [weights[n] for n in chosen], [thresholds[n] for n in chosen]).numpy()
    positive = np.bincount(merged[hard], minlength=NUM_BINS)
    return Histogram(positive, np.bincount(merged, minlength=NUM_BINS) - positive).best()[0]
