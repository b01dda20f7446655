"""Whether the difference of two runs is real."""

from pathlib import Path

import numpy as np
import pytest

from contrails.aggregate.members.scored import Scored
from contrails.aggregate.scores.paired import compare_paired
from contrails.errors import DataError

from scored_records import scored_records


def scored(path: Path, noise: float, masks: np.ndarray, seed: int = 0) -> Scored:
    """Records whose probabilities lie more or less near to their masks."""
    random = np.random.default_rng(seed)
    probabilities = (masks + noise * random.standard_normal(masks.shape)).clip(0, 1)
    return scored_records(path, masks, probabilities, [str(index % 3) for index in range(len(masks))])


@pytest.fixture
def masks() -> np.ndarray:
    return np.random.default_rng(1).random((12, 32, 32)) < 0.2


def test_a_run_and_itself_do_not_differ(tiny_data: Path, masks: np.ndarray) -> None:
    run = scored(tiny_data / "train.h5", 0.5, masks)
    found = compare_paired(run, run)
    assert (found.difference, found.interval, found.is_real) == (0, (0, 0), False)
    assert (found.num_records, found.num_groups) == (12, 12)


def test_a_better_run_is_better_and_noise_is_chance(tiny_data: Path, masks: np.ndarray) -> None:
    worse, better, other = (
        scored(tiny_data / "train.h5", noise, masks, seed) for noise, seed in ((0.6, 0), (0.3, 1), (0.6, 2))
    )
    found = compare_paired(worse, better)
    assert found.is_real
    assert found.difference > 0.1
    assert found.second_better == 1
    assert compare_paired(better, worse).difference == -found.difference
    assert not compare_paired(worse, other).is_real


def test_records_are_matched_by_name(tiny_data: Path, masks: np.ndarray) -> None:
    run = scored(tiny_data / "train.h5", 0.5, masks)
    order = np.arange(11, 1, -1)
    fewer = Scored(run.dataset, run.rows[order], run.folds[order], lambda index: run.probabilities(int(order[index])))
    found = compare_paired(run, fewer)
    assert found.num_records == 10
    assert abs(found.difference) < 0.02  # only the thresholds were chosen on fewer records


def test_runs_that_cannot_be_compared(tiny_data: Path, masks: np.ndarray) -> None:
    first = scored(tiny_data / "train.h5", 0.5, masks)
    with pytest.raises(DataError, match=r"different labels for 1[0-2] records"):
        compare_paired(first, scored(tiny_data / "train.h5", 0.5, ~masks))
    nothing = Scored(first.dataset, first.rows[:0], first.folds[:0], first.probabilities)
    with pytest.raises(DataError, match="no record in common"):
        compare_paired(first, nothing)
