"""Run-length encoding: the competition's own examples, a round trip of any mask, and what no decoder may accept."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pycocotools.mask import encode as coco_encode
from pycocotools.mask import frPyObjects

from contrails.dataset.rle import Convention, decode, encode
from contrails.errors import DataError


def mask(rows: list[str]) -> np.ndarray:
    return np.array([[character == "#" for character in row] for row in rows])


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (["..", ".."], "-"),
        (["##", "##"], "1 4"),
        (["#.", ".."], "1 1"),
        ([".#", ".."], "3 1"),
        (["..", ".#"], "4 1"),
        # down the first column, and on into the second
        ([".#", "#.", "#."], "2 3"),
        (["#.#", ".#."], "1 1 4 2"),
    ],
)
def test_pixels_are_counted_from_one_and_down_the_columns(rows: list[str], text: str) -> None:
    assert encode(mask(rows)) == text
    assert np.array_equal(decode(text, mask(rows).shape), mask(rows))


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=20)))
def test_any_mask_survives(mask: np.ndarray) -> None:
    text = encode(mask)
    decoded = decode(text, mask.shape)
    assert decoded.dtype == bool
    assert np.array_equal(decoded, mask)
    assert encode(decoded) == text


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_encodes_as_pixel_by_pixel(mask: np.ndarray) -> None:
    runs: list[list[int]] = []
    for number, pixel in enumerate((bool(mask[y, x]) for x in range(mask.shape[1]) for y in range(mask.shape[0])), 1):
        if pixel and runs and sum(runs[-1]) == number:
            runs[-1][1] += 1
        elif pixel:
            runs.append([number, 1])
    assert encode(mask) == (" ".join(f"{start} {length}" for start, length in runs) or "-")


CONVENTIONS = st.builds(
    Convention,
    st.sampled_from(["absolute", "relative"]),
    st.sampled_from(["columns", "rows"]),
    st.sampled_from(["-", "-1", ""]),
)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=20)), CONVENTIONS)
def test_any_mask_survives_any_convention(mask: np.ndarray, convention: Convention) -> None:
    text = encode(mask, convention)
    assert np.array_equal(decode(text, mask.shape, convention), mask)
    if not mask.any():
        assert text == convention.empty
        return
    # pycocotools counts pixels down the columns, those of the background and of the mask in turn
    turned = mask if convention.order == "columns" else mask.T
    numbers = list(map(int, text.split()))
    if convention.starts == "absolute":
        ends = [1, *(start + length for start, length in zip(numbers[::2], numbers[1::2], strict=True))]
        numbers[::2] = [start - end for start, end in zip(numbers[::2], ends, strict=False)]
    rest = mask.size - sum(numbers)
    theirs = frPyObjects({"counts": [*numbers, rest] if rest else numbers, "size": turned.shape}, *turned.shape)
    assert coco_encode(np.asfortranarray(turned, np.uint8))["counts"] == theirs["counts"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3 2 4 1", r"run 2 \(start 4, length 1\) leaves the image of 9 pixels"),
        ("0 9 0 1", r"run 2 \(start 0, length 1\) leaves the image of 9 pixels"),
        ("2 0", "is empty"),
        ("-", "expected whole numbers or '-1', found '-'"),
    ],
)
def test_relative_runs_stay_in_the_image(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode(text, (3, 3), Convention("relative", "columns", "-1"))
    decoded = decode("0 1 7 1", (3, 3), Convention("relative"))
    assert decoded.ravel("F").tolist() == [True, *[False] * 7, True]


def test_runs_may_touch_and_space_may_vary() -> None:
    assert np.array_equal(decode("1 2 3 2", (2, 3)), decode("1 4", (2, 3)))
    assert np.array_equal(decode(" 1\t2  3 2\n", (2, 3)), decode("1 4", (2, 3)))
    assert not decode(" - ", (2, 3)).any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected pairs of start and length, or '-', found 0 numbers"),
        ("  ", "found 0 numbers"),
        ("1", "found 1 numbers"),
        ("1 2 4", "found 3 numbers"),
        ("1 two", "expected whole numbers or '-', found 'two'"),
        ("1 2.0", "found '2.0'"),
        ("1 -2", "found '-2'"),
        ("1_0 2", "found '1_0'"),
        ("٣ 1", "found '٣'"),
        ("- -", "found '-'"),
        ("1 0", r"run 1 \(start 1, length 0\) is empty"),
        ("0 2", r"run 1 \(start 0, length 2\) leaves the image of 16 pixels"),
        ("1 1 16 2", r"run 2 \(start 16, length 2\) leaves the image of 16 pixels"),
        ("17 1", "leaves the image"),
        ("999999999999999999 999999999999999999", "leaves the image"),
        ("9" * 30 + " 1", "expected whole numbers or '-', found '9"),
        ("5 2 1 2", r"run 2 \(start 1, length 2\) begins before the run before it: runs are not sorted"),
        ("1 3 3 2", r"run 2 \(start 3, length 2\) overlaps the run before it"),
        ("3 2 3 2", r"run 2 \(start 3, length 2\) overlaps the run before it"),
    ],
)
def test_what_is_no_encoding_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode(text, (4, 4))


@given(st.text(alphabet="0123456789 -", max_size=12))
def test_whatever_decodes_keeps_its_pixels(text: str) -> None:
    try:
        decoded = decode(text, (5, 7))
    except DataError:
        return
    assert decoded.shape == (5, 7)
    if text.strip() != "-":
        assert decoded.sum() == sum(map(int, text.split()[1::2]))


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=30)))
def test_the_same_runs_as_pycocotools(mask: np.ndarray) -> None:
    """Which counts runs of zeros and ones in turn, beginning with zeros, down the columns as well."""
    compressed = frPyObjects(runs_of_coco(encode(mask), mask.size) | {"size": list(mask.shape)}, *mask.shape)
    assert compressed["counts"] == coco_encode(np.asfortranarray(mask, np.uint8))["counts"]


def runs_of_coco(text: str, size: int) -> dict[str, list[int]]:
    numbers = [] if text == "-" else list(map(int, text.split()))
    counts, position = [], 0
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        counts += [start - 1 - position, length]
        position = start - 1 + length
    return {"counts": [*counts, size - position] if position < size or not counts else counts}


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=20), elements=st.integers(0, 1)))
def test_the_competitions_reference(mask: np.ndarray) -> None:
    """`rle_encode` of the competition's own notebook, word for word but for names."""
    dots = np.where(mask.T.flatten() == 1)[0]
    run_lengths: list[int] = []
    previous = -2
    for dot in dots:
        if dot > previous + 1:
            run_lengths.extend((dot + 1, 0))
        run_lengths[-1] += 1
        previous = dot
    assert encode(mask.astype(bool)) == (" ".join(map(str, run_lengths)) or "-")
