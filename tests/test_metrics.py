import numpy as np
import pytest

from contrails.metrics import NUM_BINS, Histogram


def histogram(probs: np.ndarray, truth: np.ndarray) -> Histogram:
    rounded = np.rint(probs * (NUM_BINS - 1)).astype(int)
    return Histogram(np.bincount(rounded[truth], minlength=NUM_BINS), np.bincount(rounded[~truth], minlength=NUM_BINS))


def test_best_threshold_equals_brute_force() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(400) < 0.2
    probs = np.clip(truth * 0.3 + rng.random(400) * 0.7, 0, 1)
    dice, threshold = histogram(probs, truth).best()
    tried = [2 * (truth & (probs >= t)).sum() / (truth.sum() + (probs >= t).sum()) for t in probs]
    assert dice == pytest.approx(max(tried), abs=1e-9)
    assert histogram(probs, truth).dice(threshold) == dice


def test_parts_add_up() -> None:
    rng = np.random.default_rng(1)
    truth, probs = rng.random(100) < 0.3, rng.random(100)
    whole = histogram(probs, truth)
    parts = histogram(probs[:40], truth[:40]) + histogram(probs[40:], truth[40:])
    assert np.array_equal(whole.dice_curve(), parts.dice_curve())


def test_the_middle_of_equal_thresholds_is_taken() -> None:
    dice, threshold = histogram(np.array([0.2, 0.8]), np.array([False, True])).best()
    assert dice == 1.0
    assert threshold == pytest.approx(0.5, abs=1e-4)


def test_nothing_to_find_is_zero() -> None:
    assert histogram(np.array([0.1, 0.9]), np.array([False, False])).best()[0] == 0.0
    assert Histogram.empty().best()[0] == 0.0
