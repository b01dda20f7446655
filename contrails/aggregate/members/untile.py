"""Merging predictions of tiles into predictions of the scenes that they were cut from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from contrails.dataset.store import IGNORE, Dataset, Scene
from contrails.sources.tiles import Blend, Blender, Strip

Batches = Iterable[tuple[np.ndarray, np.ndarray]]
"""Rows of a dataset in order, int64 (B,), with their probabilities, uint16 (B, H, W)."""


@dataclass(frozen=True)
class Whole:
    """Probabilities of a whole record.

    Shape:
        probabilities uint16 (H, W), 0 where nothing was predicted; predicted bool (H, W).
    """

    scene: Scene
    probabilities: np.ndarray
    predicted: np.ndarray


def untile(dataset: Dataset, batches: Batches, blend: Blend = "hann") -> Iterator[Whole]:
    """Yield whole scenes from predictions of all records; records that are not tiles are yielded unchanged.

    One scene is in memory at a time. Pixels where a scene has no data do not count as predicted.
    """
    if not dataset.placements:
        for rows, images in batches:
            for row, image in zip(rows, images, strict=True):
                yield Whole(Scene(dataset.record_ids[row], *image.shape), image, np.ones(image.shape, bool))
        return
    strips: list[Strip] = []
    blender, current = None, -1
    for rows, images in batches:
        for row, image in zip(rows, images, strict=True):
            place = dataset.placements[row]
            if place.scene != current:
                if blender is not None:
                    yield joined(dataset.scenes[current], [*strips, *blender.close()])
                scene, strips, current = dataset.scenes[place.scene], [], place.scene
                blender = Blender(scene.height, scene.width, blend)
            assert blender is not None
            strips += blender.add(place, image, has_data(dataset, row))
    if blender is not None:
        yield joined(dataset.scenes[current], [*strips, *blender.close()])


def in_batches(probabilities: np.ndarray) -> Batches:
    """Return predictions of all records of a dataset, uint16 (N, H, W), as batches of one."""
    return ((np.array([row]), image[None]) for row, image in enumerate(probabilities))


def has_data(dataset: Dataset, row: int) -> np.ndarray:
    """Return the pixels of a tile with data, bool (H, W): an ignored pixel has none if all its bands are 0."""
    shown: np.ndarray = (dataset.votes[row] != IGNORE) | (dataset.bands[row] != 0).any(axis=(0, 1))
    return shown


def joined(scene: Scene, strips: list[Strip]) -> Whole:
    """Return the scene that consists of these strips."""
    values, predicted = (np.concatenate([getattr(strip, name) for strip in strips]) for name in ("values", "predicted"))
    return Whole(scene, values, predicted)
