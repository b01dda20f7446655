"""Tiles: what they cover, and that blending gives back what was cut."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contrails.dataset.store import Placement
from contrails.errors import DataError
from contrails.sources.tiles import Blender, Strip, grid, padded, starts, window


@settings(deadline=None)  # a tile of one pixel makes thousands of them
@given(st.data(), st.integers(1, 60), st.integers(1, 60), st.integers(1, 33), st.sampled_from(["hann", "gaussian"]))
def test_tiling_then_blending_is_the_identity(
    data: st.DataObject, height: int, width: int, tile: int, blend: str
) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    scene = np.random.default_rng(height * width).integers(0, 65_536, (height, width)).astype(np.uint16)
    blender = Blender(height, width, blend)  # type: ignore[arg-type]
    strips: list[Strip] = []
    placements = grid(height, width, (tile, tile), overlap)
    assert len(set(placements)) == len(placements)
    for place in placements:
        assert place.row + place.height <= height
        assert place.column + place.width <= width
        part = scene[place.row : place.row + place.height, place.column : place.column + place.width]
        strips += blender.add(place, padded(part[None], (tile, tile))[0])
    strips += blender.close()
    assert [strip.row for strip in strips] == np.cumsum([0, *(len(strip.values) for strip in strips)])[:-1].tolist()
    assert np.array_equal(np.concatenate([strip.values for strip in strips]), scene)
    assert np.concatenate([strip.predicted for strip in strips]).all()


def test_the_last_tile_ends_with_the_scene() -> None:
    assert starts(10, 4, 1) == [0, 3, 6]
    assert starts(11, 4, 1) == [0, 3, 6, 7]
    assert starts(512, 256, 32) == [0, 224, 256]
    assert starts(512, 256, 0) == [0, 256]
    assert grid(3, 5, (8, 6), 4, 7) == [Placement(7, 0, 0, 3, 5)]


@given(st.integers(1, 300), st.integers(1, 64), st.integers(0, 63))
def test_tiles_are_as_few_as_cover_a_side_and_padded_only_where_it_is_shorter(
    side: int, tile: int, overlap: int
) -> None:
    overlap = min(overlap, tile - 1)
    found = starts(side, tile, overlap)
    assert len(found) == max(1, -(-(side - overlap) // (tile - overlap)))
    assert found[-1] == max(side - tile, 0)
    assert all(tile - overlap >= later - earlier > 0 for earlier, later in itertools.pairwise(found))


def test_what_no_tile_predicted_is_said() -> None:
    blender = Blender(6, 4)
    valid = np.ones((4, 4), bool)
    valid[0, 0] = False
    assert list(blender.add(Placement(0, 0, 0, 4, 4), np.full((4, 4), 9, np.uint16), valid)) == []
    (strip,) = blender.close()
    assert np.argwhere(~strip.predicted).tolist() == [[0, 0], *([row, column] for row in (4, 5) for column in range(4))]
    assert strip.values[strip.predicted].tolist() == [9] * 15
    assert not strip.values[~strip.predicted].any()


def test_only_a_strip_is_held() -> None:
    blender = Blender(1000, 8)
    largest = 0
    for place in grid(1000, 8, (8, 8), 4):
        list(blender.add(place, np.zeros((8, 8), np.uint16)))
        largest = max(largest, len(blender._sums))
    assert largest == 8


def test_weights_fall_towards_the_edges_and_never_to_nothing() -> None:
    for blend in ("hann", "gaussian"):
        weights = window(64, blend).astype(int)
        assert np.array_equal(weights, weights[::-1])
        assert (np.diff(weights[:32]) >= 0).all()
        assert weights.min() == 1
        assert weights.max() == pytest.approx(255, abs=2)


@pytest.mark.parametrize("overlap", [-1, 8, 9])
def test_an_overlap_is_smaller_than_the_tile(overlap: int) -> None:
    with pytest.raises(DataError, match=f"expected an overlap from 0 to 7 pixels of tiles of 8, found {overlap}"):
        grid(20, 20, (9, 8), overlap)
