"""Draws: a function of their name alone, different for different names, the same bits for ever."""

import numpy as np
import pytest

from contrails.draws import derived_seed, generator


def test_a_draw_is_a_function_of_its_name_alone() -> None:
    first = generator(0, "order", "3", 7).random(4)
    generator(0, "order", "3", 8).random(100)
    np.random.default_rng().random()
    assert np.array_equal(generator(0, "order", "3", 7).random(4), first)


@pytest.mark.parametrize(
    "other",
    [(1, "order", "3", 7), (0, "noise", "3", 7), (0, "order", "4", 7), (0, "order", "3", 8), (0, "order", "37")],
)
def test_another_name_is_another_draw(other: tuple[int, str]) -> None:
    assert derived_seed(*other) != derived_seed(0, "order", "3", 7)
    assert not np.array_equal(generator(*other).random(4), generator(0, "order", "3", 7).random(4))


def test_the_bits_never_change() -> None:
    """Runs and file lists that exist were made with these."""
    assert derived_seed(0, "split") == 3769940940748469125
    assert generator(0, "split").integers(0, 1000, 5).tolist() == [682, 469, 987, 814, 498]
    assert generator(7, "order", "all", 2).permutation(6).tolist() == [3, 2, 4, 5, 1, 0]


def test_a_seed_fits_torch_and_spreads() -> None:
    seeds = [derived_seed(0, "init", fold) for fold in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == 1000
    assert 0.45 < np.mean([seed >> 62 for seed in seeds]) < 0.55
