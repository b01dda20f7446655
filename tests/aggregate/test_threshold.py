"""The threshold beside brute force, cross-fitted, with intervals; calibration beside scikit-learn; without labels."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from contrails.aggregate.decide.calibrate import Calibration, fit, label_free, reliability
from contrails.aggregate.decide.judged import judge
from contrails.aggregate.decide.threshold import (
    confusion_at,
    cross_fitted,
    cross_fitted_dice,
    dice_interval,
    threshold_interval,
)
from contrails.aggregate.members.scored import Scored, tally
from contrails.aggregate.scores.fit import held_out_scores
from contrails.metrics import NUM_BINS, Histogram

from scored_records import scored_records

TOP = NUM_BINS - 1
Make = Callable[..., Scored]


@pytest.fixture
def noisy(tiny_data: Path) -> Scored:
    """24 records of 16x16 in three folds, whose probabilities know something of the label."""
    random = np.random.default_rng(0)
    masks = random.random((24, 16, 16)) < 0.15
    probabilities = np.clip(0.3 * masks + random.normal(0.3, 0.15, masks.shape), 0, 1)
    groups = [str(index // 2) for index in range(24)]
    return scored_records(tiny_data / "train.h5", masks, probabilities, [str(i % 3) for i in range(24)], groups)


def flat(scored: Scored, part: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    chosen = [index for index in range(len(scored)) if part in (None, scored.folds[index])]
    probabilities = np.concatenate([scored.probabilities(index).ravel() for index in chosen])
    return probabilities, np.concatenate([scored.truth(index)[0].ravel() for index in chosen])


def brute_force(probabilities: np.ndarray, hard: np.ndarray) -> tuple[float, int]:
    """The best Dice over every threshold that makes a difference, and its cut."""
    best = max(
        (2 * (hard & (probabilities >= cut)).sum() / (hard.sum() + (probabilities >= cut).sum()), -int(cut))
        for cut in np.unique(probabilities)
    )
    return best[0], -best[1]


def test_the_optimum_is_that_of_brute_force(noisy: Scored) -> None:
    dice, threshold = tally(noisy).pooled.best()
    probabilities, hard = flat(noisy)
    expected, cut = brute_force(probabilities, hard)
    assert dice == pytest.approx(expected)
    assert np.array_equal(probabilities >= round(threshold * TOP), probabilities >= cut)
    for part, histogram in tally(noisy).by_fold.items():
        assert histogram.best()[0] == pytest.approx(brute_force(*flat(noisy, part))[0])


def test_each_fold_is_cut_at_the_optimum_of_the_others(noisy: Scored) -> None:
    counted = tally(noisy)
    thresholds = cross_fitted(counted)
    hits = total = 0
    for part in "012":
        others = [flat(noisy, other) for other in "012" if other != part]
        _, cut = brute_force(*map(np.concatenate, zip(*others, strict=True)))
        probabilities, hard = flat(noisy, part)
        assert np.array_equal(probabilities >= round(thresholds[part] * TOP), probabilities >= cut)
        hits += 2 * (hard & (probabilities >= cut)).sum()
        total += hard.sum() + (probabilities >= cut).sum()
    assert cross_fitted_dice(counted, thresholds) == pytest.approx(hits / total)
    assert cross_fitted_dice(counted, thresholds) <= counted.pooled.best()[0]


def test_pixels_that_do_not_count_are_left_out(tiny_data: Path, noisy: Scored) -> None:
    noisy.dataset.votes[0, :8] = 255
    counts = confusion_at(tally(noisy).pooled, 0.0)
    assert counts.pixels == 24 * 256 - 128
    assert counts.hits == counts.actual == (noisy.dataset.votes == 1).sum()


def test_groups_are_drawn_together(noisy: Scored) -> None:
    counted = tally(noisy)
    low, high = threshold_interval(counted)["threshold"]
    assert low <= counted.pooled.best()[1] <= high
    assert threshold_interval(counted) == {"threshold": [low, high]}
    assert counted.positive.shape == (12, 256)


def test_the_interval_is_that_of_the_figure_itself(noisy: Scored) -> None:
    counted = tally(noisy)
    thresholds = cross_fitted(counted)
    found = dice_interval(noisy.groups, judge(noisy, thresholds).counts, "test")
    assert found is not None
    assert found[0] < cross_fitted_dice(counted, thresholds) < found[1]
    assert dice_interval(noisy.groups, judge(noisy, thresholds).counts, "test") == found
    # beside a bootstrap over groups
    random, dices = np.random.default_rng(1), []
    cuts = [round(thresholds[str(index % 3)] * TOP) for index in range(24)]
    per_group = [
        np.sum([counts(noisy, index, cuts[index]) for index in (2 * group, 2 * group + 1)], axis=0)
        for group in range(12)
    ]
    for _ in range(1000):
        hits, total = np.sum([per_group[group] for group in random.integers(0, 12, 12)], axis=0)
        dices.append(hits / total)
    assert found == pytest.approx(np.percentile(dices, [2.5, 97.5]).tolist(), abs=0.02)


def test_one_group_has_no_interval(tiny_data: Path) -> None:
    masks = np.zeros((2, 16, 16), bool)
    masks[:, :4] = True
    scored = scored_records(tiny_data / "train.h5", masks, masks * 0.9, ["0", "1"], ["g", "g"])
    assert threshold_interval(tally(scored)) == {}
    assert held_out_scores(scored, 0.5, ())["interval"] is None


def counts(scored: Scored, index: int, cut: int) -> tuple[int, int]:
    mask, hard = scored.probabilities(index) >= cut, scored.truth(index)[0]
    return 2 * int((mask & hard).sum()), int(mask.sum() + hard.sum())


def overconfident(seed: int = 0) -> Histogram:
    random = np.random.default_rng(seed)
    logits = random.normal(-2, 1.5, 200_000)
    hard = random.random(200_000) < 1 / (1 + np.exp(-logits))
    stored = np.round(TOP / (1 + np.exp(-(2 * logits + 0.7)))).astype(int)
    return Histogram(np.bincount(stored[hard], minlength=NUM_BINS), np.bincount(stored[~hard], minlength=NUM_BINS))


def test_platt_scaling_is_logistic_regression() -> None:
    histogram = overconfident()
    found = fit(histogram, with_bias=True)
    k = np.arange(NUM_BINS)
    logit = np.log((k + 0.5) / (NUM_BINS - k - 0.5))[:, None]
    model = LogisticRegression(C=np.inf, tol=1e-10).fit(
        np.concatenate([logit, logit]),
        np.repeat([1, 0], NUM_BINS),
        sample_weight=np.concatenate([histogram.positive, histogram.negative]),
    )
    assert (found.slope, found.bias) == pytest.approx((model.coef_[0, 0], model.intercept_[0]), rel=1e-3)
    # what was done to the logits is undone
    assert (found.slope, found.bias) == pytest.approx((0.5, -0.35), abs=0.02)


def test_calibration_makes_probabilities_mean_what_they_say() -> None:
    fitted, other = overconfident(0), overconfident(1)
    before, after = reliability(other, Calibration()), reliability(other, fit(fitted, with_bias=True))
    temperature = reliability(other, fit(fitted, with_bias=False))
    assert after["calibration_error"] < 0.005 < 0.02 < before["calibration_error"]
    assert after["cross_entropy"] < temperature["cross_entropy"] < before["cross_entropy"]
    assert sum(pixels for *_, pixels in after["bins"]) == 200_000


def test_without_two_classes_nothing_is_calibrated() -> None:
    nothing = Histogram(np.zeros(NUM_BINS, np.int64), np.ones(NUM_BINS, np.int64))
    assert fit(nothing, with_bias=True) == Calibration()
    assert fit(Histogram.empty(), with_bias=False) == Calibration()
    assert label_free(np.zeros(NUM_BINS, np.int64), Calibration())["dice"] == 0


def test_the_optimum_without_labels_is_that_with_labels_where_probabilities_are_calibrated() -> None:
    histogram = overconfident()
    calibration = fit(histogram, with_bias=True)
    found = label_free(histogram.positive + histogram.negative, calibration)
    dice, threshold = histogram.best()
    assert found["dice"] == pytest.approx(dice, abs=0.01)
    assert histogram.dice(found["expected_dice"]) == pytest.approx(dice, abs=0.002)
    assert calibration.probabilities()[round(found["half_dice"] * TOP)] == pytest.approx(found["dice"] / 2, abs=1e-3)
    assert found["expected_dice"] == pytest.approx(found["half_dice"], abs=0.01)
    # as they are stored, the probabilities promise another one
    raw = label_free(histogram.positive + histogram.negative, Calibration())
    assert abs(raw["expected_dice"] - threshold) > 5 * abs(found["expected_dice"] - threshold)


@given(st.lists(st.tuples(st.integers(0, TOP), st.booleans()), min_size=1, max_size=60))
def test_the_optimum_of_any_pixels(pixels: list[tuple[int, bool]]) -> None:
    probabilities, hard = np.array([p for p, _ in pixels]), np.array([h for _, h in pixels])
    histogram = Histogram(
        np.bincount(probabilities[hard], minlength=NUM_BINS), np.bincount(probabilities[~hard], minlength=NUM_BINS)
    )
    assert histogram.best()[0] == pytest.approx(brute_force(probabilities, hard)[0])
