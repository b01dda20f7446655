"""Rules of merging beside numpy, with equal and other weights; the order of members; weights of runs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contrails.aggregate.members.merge import MERGES, fixed_threshold, merge
from contrails.aggregate.options import MERGE_RULES
from contrails.aggregate.scores.weighting import fit_weights
from contrails.metrics import NUM_BINS

TOP = NUM_BINS - 1


def members(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((count, 5, 6)).astype(np.float32))


def test_every_rule_that_the_command_line_knows_is_there() -> None:
    assert tuple(MERGES) == MERGE_RULES


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_rules_with_equal_weights(count: int) -> None:
    probs, ones, cuts = members(count), [1.0] * count, [0.4] * count
    array = probs.numpy().astype(float)
    logit = np.log(array / (1 - array)).mean(0)
    expected = {
        "mean": array.mean(0),
        "logits": 1 / (1 + np.exp(-logit)),
        "median": np.median(array, axis=0),
        "median-mean": np.median(array, axis=0),
        "vote": (np.round(array * TOP) >= np.round(0.4 * TOP)).mean(0),
    }
    for rule, values in expected.items():
        assert np.abs(merge(rule, probs, ones, cuts).numpy() - values * TOP).max() <= 2, rule


def test_weights_count_as_copies_would() -> None:
    probs = members(3)
    copies = probs[[0, 0, 0, 1, 2]]
    for rule in MERGES:
        merged = merge(rule, probs, [3, 1, 1], [0.3, 0.5, 0.7])
        assert (merged - merge(rule, copies, [1] * 5, [0.3, 0.3, 0.3, 0.5, 0.7])).abs().max() <= 1, rule


@given(st.integers(0, 99), st.permutations(range(4)))
def test_the_order_of_members_does_not_matter(seed: int, order: list[int]) -> None:
    """But for the last bit of sums in other orders: an ensemble takes its members by name."""
    probs, weights, cuts = members(4, seed), [0.1, 0.2, 0.3, 0.4], [0.2, 0.4, 0.5, 0.9]
    for rule in MERGES:
        merged = merge(rule, probs, weights, cuts)
        again = merge(rule, probs[order], [weights[n] for n in order], [cuts[n] for n in order])
        assert (merged - again).abs().max() <= 1, rule


def test_certain_members_stay_finite() -> None:
    probs = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    assert merge("logits", probs, [1, 1], [0.5, 0.5]).tolist() == [0, TOP, 32768]


def test_half_of_the_votes_is_no_majority() -> None:
    probs = torch.tensor([[0.9, 0.9, 0.1], [0.1, 0.9, 0.1]])
    threshold = fixed_threshold("vote", [0.5, 0.5], [1, 1])
    assert threshold is not None
    assert (merge("vote", probs, [1, 1], [0.5, 0.5]) >= round(threshold * TOP)).tolist() == [False, True, False]
    assert fixed_threshold("median-mean", [0.2, 0.4], [1, 3]) == pytest.approx(0.35)
    assert fixed_threshold("mean", [0.2], [1]) is None


def test_a_run_of_noise_gets_less_weight() -> None:
    random = np.random.default_rng(0)
    hard = random.random(4000) < 0.1
    good = np.clip(0.6 * hard + random.normal(0.2, 0.15, 4000), 0, 1)
    other = np.clip(0.6 * hard + random.normal(0.2, 0.15, 4000), 0, 1)
    noise = random.random(4000)
    probs = torch.from_numpy(np.stack([noise, good, other]).astype(np.float32))
    weights = fit_weights("mean", probs, hard, [0.5] * 3)
    assert sum(weights) == pytest.approx(1)
    assert weights[0] < 0.1
    assert min(weights[1:]) > 0.3
    assert fit_weights("mean", probs[[2, 1, 0]], hard, [0.5] * 3) == pytest.approx(weights[::-1], abs=0.2)
