"""Predictions of tiles as predictions of scenes: exactly what was predicted, also of files with padded tiles."""

from pathlib import Path

import numpy as np
import pytest

from contrails.aggregate.members.untile import in_batches, untile
from contrails.dataset.layout import Header, create
from contrails.dataset.store import Placement, Scene, open_dataset
from contrails.sources.goes import KELVIN
from contrails.sources.tiles import grid, padded, tile_name

SHAPES = {"a": (70, 50), "b": (20, 31), "c": (64, 32)}
PADDED = [
    Placement(number, row, column, min(32, height - row), min(32, width - column))
    for number, (height, width) in enumerate(SHAPES.values())
    for row in range(0, max(height - 8, 1), 24)
    for column in range(0, max(width - 8, 1), 24)
]
"""As files were cut before the last tile of a row was shifted inward."""
SHIFTED = [place for number, shape in enumerate(SHAPES.values()) for place in grid(*shape, (32, 32), 8, number)]


@pytest.mark.parametrize("places", [PADDED, SHIFTED])
def test_scenes_come_back_exactly(tmp_path: Path, places: list[Placement]) -> None:
    scenes = tuple(Scene(name, *shape) for name, shape in SHAPES.items())
    ids = tuple(tile_name(scenes[place.scene].name, place) for place in places)
    unknown = (float("nan"),) * len(ids)
    header = Header(
        "test", ("grey",), (0,), (32, 32), False, ids, ids, unknown, KELVIN, "", scenes=scenes, placements=tuple(places)
    )
    create(header, tmp_path / "d.h5")
    dataset = open_dataset(tmp_path / "d.h5")
    assert list(dataset.placements) == places
    random = np.random.default_rng(0)
    truth = [random.integers(0, 65_536, shape).astype(np.uint16) for shape in SHAPES.values()]
    parts = [
        truth[place.scene][None, place.row : place.row + place.height, place.column : place.column + place.width]
        for place in places
    ]
    tiles = np.concatenate([padded(part, (32, 32)) for part in parts])
    dataset.votes[:] = 0
    for whole, expected in zip(untile(dataset, in_batches(tiles)), truth, strict=True):
        assert np.array_equal(whole.probabilities, expected)
        assert whole.predicted.all()
