"""Sampling: what a step sees depends on seed, fold and step alone; shares, groups, windows and last batches hold."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from conftest import MakeRecipe

from contrails.dataset.store import Dataset
from contrails.errors import DataError, RecipeError
from contrails.inputs.sampling import Sampler, Selection, require_crop_fits


def equal(one: Selection, other: Selection) -> bool:
    return (
        np.array_equal(one.rows, other.rows)
        and list(one.corners) == list(other.corners)
        and (one.side, list(one.elements)) == (other.side, list(other.elements))
    )


def rows_of(sampler: Sampler, epoch: int) -> np.ndarray:
    first = epoch * sampler.steps_per_epoch
    return np.concatenate([sampler.selection(step).rows for step in range(first, first + sampler.steps_per_epoch)])


def test_a_part_depends_on_seed_fold_and_step_alone(framed: Dataset, recipe_with: MakeRecipe) -> None:
    recipe = recipe_with(data={"crop": 32, "crop_positive": 0.5}, train={"batch_size": 2})
    sampler = Sampler(framed, recipe, np.arange(9), "1")
    parts = [sampler.selection(step) for step in range(12)]
    again = Sampler(framed, recipe, np.arange(9), "1")
    assert all(equal(parts[step], again.selection(step)) for step in (11, 3, 0, 7))
    other_fold = Sampler(framed, recipe, np.arange(9), "2")
    other_seed = Sampler(framed, recipe.model_copy(update={"seed": 1}), np.arange(9), "1")
    for other in (other_fold, other_seed):
        assert not any(equal(parts[step], other.selection(step)) for step in range(12))


def test_an_epoch_takes_every_record_once(framed: Dataset, recipe_with: MakeRecipe) -> None:
    rows = np.array([1, 2, 4, 5, 7, 8, 0])
    sampler = Sampler(framed, recipe_with(train={"batch_size": 3, "drop_last": False}), rows, "0")
    assert sampler.steps_per_epoch == 3
    assert [len(sampler.selection(step).rows) for step in range(3)] == [3, 3, 1]
    assert sorted(rows_of(sampler, 0)) == sorted(rows_of(sampler, 1)) == sorted(rows)
    assert not np.array_equal(rows_of(sampler, 0), rows_of(sampler, 1))


def test_the_incomplete_batch_is_left_out_unless_asked_for(framed: Dataset, recipe_with: MakeRecipe) -> None:
    sampler = Sampler(framed, recipe_with(train={"batch_size": 4}), np.arange(9), "0")
    assert sampler.steps_per_epoch == 2
    assert len(set(rows_of(sampler, 0))) == 8
    small = Sampler(framed, recipe_with(train={"batch_size": 16}), np.arange(3), "0")
    assert (small.batch_size, small.steps_per_epoch) == (3, 1)


def test_an_epoch_that_leaves_out_much_is_told(
    framed: Dataset, recipe_with: MakeRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    Sampler(framed, recipe_with(train={"batch_size": 4}), np.arange(8), "0")
    Sampler(framed, recipe_with(train={"batch_size": 4, "drop_last": False}), np.arange(9), "0")
    assert caplog.messages == []
    Sampler(framed, recipe_with(train={"batch_size": 4}), np.arange(9), "0")
    assert caplog.messages == [
        (
            "fold 0: an epoch has 2 steps of 4 records and leaves out 1 of 9; set train.drop_last = false, or "
            "train.batch_size = 3"
        )
    ]


def test_a_batch_larger_than_the_fold_is_told(
    framed: Dataset, recipe_with: MakeRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    Sampler(framed, recipe_with(train={"batch_size": 9}), np.arange(9), "0")
    assert caplog.messages == []
    Sampler(framed, recipe_with(train={"batch_size": 16}), np.arange(9), "0")
    assert caplog.messages == [
        "train.batch_size = 16 is more than the records of fold 0 (9): every step uses all of them"
    ]


def test_every_batch_has_its_share_of_positive_records(framed: Dataset, recipe_with: MakeRecipe) -> None:
    recipe = recipe_with(train={"batch_size": 4, "positive_share": 0.5})
    sampler = Sampler(framed, recipe, np.arange(9), "0")
    positive = framed.positive_pixels(range(9)) > 0
    assert positive.sum() == 3
    for step in range(20):
        assert positive[sampler.selection(step).rows].sum() == 2
    # three positive records in four places an epoch: no record is drawn again before all others were
    counts = Counter(row for row in rows_of(sampler, 0) if positive[row])
    assert sorted(counts.values()) == [1, 1, 2]


def test_a_share_that_does_not_divide_the_batch_holds_over_the_epoch(framed: Dataset, recipe_with: MakeRecipe) -> None:
    recipe = recipe_with(train={"batch_size": 2, "positive_share": 0.3, "drop_last": False})
    sampler = Sampler(framed, recipe, np.arange(9), "0")
    positive = framed.positive_pixels(range(9)) > 0
    taken = [int(positive[sampler.selection(step).rows].sum()) for step in range(sampler.steps_per_epoch)]
    assert sum(taken) == round(0.3 * 9)
    assert set(taken) <= {0, 1}


def test_a_share_needs_both_kinds(framed: Dataset, recipe_with: MakeRecipe) -> None:
    recipe = recipe_with(train={"positive_share": 0.5})
    with pytest.raises(DataError, match=r"train.positive_share = 0.5: .* in fold 3, found 0 positive of 2;"):
        Sampler(framed, recipe, np.array([1, 2]), "3")


def test_groups_are_drawn_equally_often(framed: Dataset, recipe_with: MakeRecipe) -> None:
    assert Counter(Counter(framed.groups).values()) == {6: 1, 1: 3}
    sampler = Sampler(framed, recipe_with(train={"batch_size": 9, "balance_groups": True}), np.arange(9), "0")
    drawn = Counter(framed.groups[row] for epoch in range(200) for row in rows_of(sampler, epoch))
    assert all(abs(count - 450) < 75 for count in drawn.values())  # 4 deviations of a binomial(1800, 1/4)
    assert len(drawn) == 4


def test_windows_lie_within_and_everywhere(framed: Dataset, recipe_with: MakeRecipe) -> None:
    sampler = Sampler(framed, recipe_with(data={"crop": 40}, train={"batch_size": 9}), np.arange(9), "0")
    corners = np.concatenate([np.array(sampler.selection(step).corners) for step in range(100)])
    assert corners.min() == 0
    assert corners.max() == 64 - 40
    assert sampler.selection(0).side == 40
    assert len(np.unique(corners[:, 0])) == len(np.unique(corners[:, 1])) == 25


def test_windows_hold_a_positive_pixel_where_that_is_asked_for(framed: Dataset, recipe_with: MakeRecipe) -> None:
    positive = np.flatnonzero(framed.positive_pixels(range(9)))
    # one pixel alone: most windows miss it
    votes = np.zeros_like(framed.votes)
    votes[:, 3, 60] = 4
    sparse = replace(framed, votes=votes)

    def shares(chance: float) -> float:
        recipe = recipe_with(data={"crop": 32, "crop_positive": chance}, train={"batch_size": 3})
        sampler = Sampler(sparse, recipe, positive, "0")
        held = []
        for step in range(200):
            part = sampler.selection(step)
            for row, (top, left) in zip(part.rows, part.corners, strict=True):
                held.append((votes[row, top : top + 32, left : left + 32] > 2).any())
        return float(np.mean(held))

    assert shares(1.0) == 1
    # by chance: 4 of 33 tops and 4 of 33 lefts
    assert shares(0.0) < 0.05
    assert 0.4 < shares(0.5) < 0.6


def test_a_window_of_an_empty_record_is_any_window(framed: Dataset, recipe_with: MakeRecipe) -> None:
    recipe = recipe_with(data={"crop": 32, "crop_positive": 1.0}, train={"batch_size": 2})
    part = Sampler(framed, recipe, np.array([1, 2]), "0").selection(0)
    assert len(part.corners) == 2


def test_dihedral_draws(framed: Dataset, recipe_with: MakeRecipe) -> None:
    moved = Sampler(framed, recipe_with(train={"batch_size": 9}), np.arange(9), "0")
    assert {element for step in range(20) for element in moved.selection(step).elements} == set(range(8))
    still = Sampler(framed, recipe_with(train={"batch_size": 9}, augment={"dihedral": 0}), np.arange(9), "0")
    assert not any(still.selection(step).elements[0] for step in range(20))


def test_a_window_larger_than_the_records_is_refused(framed: Dataset, recipe_with: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=r"data.crop = 65: .* the records of .*train.h5, 64 x 64 pixels"):
        require_crop_fits(recipe_with(data={"crop": 65}), framed)
    require_crop_fits(recipe_with(data={"crop": 64}), framed)


def test_records_that_are_no_squares_keep_their_sides(framed: Dataset, recipe_with: MakeRecipe) -> None:
    wide = replace(framed, votes=framed.votes[:, :32])
    elements = [
        element
        for step in range(20)
        for element in Sampler(wide, recipe_with(train={"batch_size": 9}), np.arange(9), "0").selection(step).elements
    ]
    assert set(elements) == {0, 1, 2, 3}
    crop = Sampler(wide, recipe_with(data={"crop": 32}, train={"batch_size": 9}), np.arange(9), "0")
    assert any(element > 3 for step in range(20) for element in crop.selection(step).elements)
