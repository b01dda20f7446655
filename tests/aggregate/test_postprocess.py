"""Post-processing: what each step does, and that only what gains by more than its noise is kept."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from contrails.aggregate.decide.postprocess import EMPTY_RULE, OPERATIONS, Step, apply, decide, top_logit
from contrails.metrics import NUM_BINS

from scored_records import scored_records

TOP = NUM_BINS - 1
MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=3, max_side=12))


def picture(*rows: str) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


def components(mask: np.ndarray) -> list[set[tuple[int, int]]]:
    """Pixels that touch, corners included, by flooding."""
    left, found = {(int(y), int(x)) for y, x in np.argwhere(mask)}, []
    while left:
        waiting = [left.pop()]
        component = set(waiting)
        while waiting:
            y, x = waiting.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            component |= near
            waiting += near
        found.append(component)
    return found


@given(MASKS, st.integers(1, 12))
def test_components_below_the_area_go_and_no_others(mask: np.ndarray, area: int) -> None:
    expected = np.zeros_like(mask)
    for component in components(mask):
        for pixel in component:
            expected[pixel] = len(component) >= area
    assert np.array_equal(OPERATIONS["min_area"](mask, area), expected)


@given(MASKS, st.sampled_from([1, 2]))
def test_opening_only_takes_and_closing_only_adds(mask: np.ndarray, times: int) -> None:
    opened, closed = OPERATIONS["opening"](mask, times), OPERATIONS["closing"](mask, times)
    assert not (opened & ~mask).any()
    assert not (mask & ~closed).any()
    assert closed.shape == mask.shape
    assert np.array_equal(OPERATIONS["opening"](opened, times), opened)


@given(MASKS, st.integers(1, 20))
def test_holes_are_filled_up_to_their_size(mask: np.ndarray, size: int) -> None:
    filled = OPERATIONS["fill_holes_to"](mask, size)
    assert not (mask & ~filled).any()
    edge = np.ones_like(mask)
    edge[1:-1, 1:-1] = False
    assert not (filled & ~mask & edge).any()


def test_a_hole_and_a_bay() -> None:
    mask = picture("#####", "#.#..", "#####")
    assert np.array_equal(OPERATIONS["fill_holes_to"](mask, 1), picture("#####", "###..", "#####"))
    assert np.array_equal(
        OPERATIONS["fill_holes_to"](picture("####", "#..#", "####"), 1), picture("####", "#..#", "####")
    )


def test_a_contrail_that_leaves_the_record_is_closed_as_any_other() -> None:
    mask = picture("##.##", ".....")
    assert np.array_equal(OPERATIONS["closing"](mask, 1), picture("#####", "....."))


def test_the_empty_rule_looks_at_the_hundred_most_probable_pixels() -> None:
    image = np.full((32, 32), TOP // 10, np.uint16)
    image[:10, :10] = TOP * 3 // 4
    assert top_logit(image) == pytest.approx(np.log(3), abs=1e-3)
    assert apply(image, 0.5, [Step(EMPTY_RULE, 1.0)]).sum() == 100
    assert not apply(image, 0.5, [Step(EMPTY_RULE, 1.2)]).any()
    assert top_logit(np.zeros((3, 3), np.uint16)) < -10
    assert not apply(np.zeros((3, 3), np.uint16), 0.5, [Step("closing", 1)]).any()


def speckled(tiny_data: Path, *, speckles: int) -> tuple[tuple[Step, ...], dict[str, dict[str, float]]]:
    """Decide on 60 records, every other with a bar that is found, and with false single pixels."""
    random = np.random.default_rng(0)
    masks = np.zeros((60, 32, 32), bool)
    masks[::2, 10:13, 4:28] = True
    probabilities = np.where(masks, 0.8, 0.1)
    for image in probabilities:
        for y, x in random.integers(0, 32, (speckles, 2)):
            image[y, x] = max(image[y, x], 0.7)
    scored = scored_records(tiny_data / "train.h5", masks, probabilities, [str(i % 3) for i in range(60)])
    decided = decide(scored, dict.fromkeys("012", 0.5))
    steps, table = decided.steps, decided.rows
    return steps, {row["step"]: row for row in table}


def test_what_gains_is_kept_and_what_does_not_is_not(tiny_data: Path) -> None:
    steps, table = speckled(tiny_data, speckles=6)
    assert table["opening"]["kept"]
    assert [step.name for step in steps] == ["opening"]
    assert table["opening"]["gain"] > table["opening"]["noise"] > 0
    assert table["closing"]["gain"] <= 0
    assert table["if empty records were known"]["dice"] >= table["opening"]["dice"]
    assert table["opening"]["dice"] == pytest.approx(table["threshold alone"]["dice"] + table["opening"]["gain"])


def test_clean_masks_are_left_alone(tiny_data: Path) -> None:
    steps, table = speckled(tiny_data, speckles=0)
    assert steps == ()
    assert table["threshold alone"]["dice"] == 1
    assert all(row["gain"] <= 0 for row in table.values())


def test_the_table_says_what_the_steps_do(tiny_data: Path) -> None:
    """The last figure, counted again from the steps; here each fold chooses what all choose."""
    random = np.random.default_rng(1)
    masks = np.zeros((40, 32, 32), bool)
    masks[::2, 8:12, 4:28] = True
    probabilities = np.clip(np.where(masks, 0.75, 0.1) + random.normal(0, 0.1, masks.shape), 0, 1)
    probabilities[1::2, 20:26, 5:11] = 0.6  # false ones, in empty records
    scored = scored_records(tiny_data / "train.h5", masks, probabilities, [str(i % 2) for i in range(20) for _ in "ab"])
    decided = decide(scored, {"0": 0.5, "1": 0.5})
    steps, table = decided.steps, decided.rows
    assert steps
    found = np.stack([apply(scored.probabilities(index), 0.5, steps) for index in range(40)])
    dice = 2 * (found & masks).sum() / (found.sum() + masks.sum())
    assert [row["dice"] for row in table if row["kept"]][-1] == pytest.approx(dice, abs=1e-3)
    assert table[-1]["step"] == "if empty records were known"


def blobs(count: int) -> np.ndarray:
    """Masks with a bar of 60 pixels, as many records as asked for."""
    masks = np.zeros((count, 32, 32), bool)
    masks[:, 4:7, 4:24] = True
    return masks


def test_a_gain_that_hangs_on_a_few_records_is_not_kept(tiny_data: Path) -> None:
    masks = blobs(40)
    probabilities = np.where(masks, 0.8, 0.1)
    probabilities[:2, 20:22, 20:22] = 0.8  # false, in one record of each part
    scored = scored_records(tiny_data / "train.h5", masks, probabilities, ["0", "1"] * 20)
    decided = decide(scored, {"0": 0.5, "1": 0.5})
    steps, table = decided.steps, decided.rows
    found = {row["step"]: row for row in table}
    assert 0 < found["min_area"]["gain"] < found["min_area"]["noise"]
    assert steps == ()


def test_a_part_does_not_choose_for_itself(tiny_data: Path) -> None:
    """What is small is false in part 0 and true in part 1: each taught by the other, both get it wrong."""
    masks = blobs(40)
    probabilities = np.where(masks, 0.8, 0.1)
    probabilities[:, 20:22, 20:22] = 0.8
    masks[1::2, 20:22, 20:22] = True
    scored = scored_records(tiny_data / "train.h5", masks, probabilities, ["0", "1"] * 20)
    decided = decide(scored, {"0": 0.5, "1": 0.5})
    steps, table = decided.steps, decided.rows
    found = {row["step"]: row for row in table}
    assert found["min_area"]["gain"] < 0
    assert steps == ()
