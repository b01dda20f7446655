"""Scenes of any size as tiles of one size, and tiles back to scenes.

Tiles lie on a grid from the top left on, `tile - overlap` pixels apart; the last one of a row or a column is shifted
inward, so that it ends with the scene. Only a scene that is smaller than a tile is padded: with mirrored pixels, and a
label that says "ignore". On the way back overlapping tiles are blended by a window that falls towards their edges.
Weights are whole numbers and so are sums, so that equal values blend to themselves, and nothing depends on the order;
the scene is built strip by strip. The last tiles of older files are padded: what a placement says counts.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from contrails.dataset.layout import Header
from contrails.dataset.pack import Arrays
from contrails.dataset.store import IGNORE, Placement
from contrails.errors import DataError

TILE, OVERLAP = 512, 64
"""Side and overlap of tiles in pixels, where nobody says them."""

Blend = Literal["hann", "gaussian"]
_LARGEST_WEIGHT = 255
_ROWS_AT_ONCE = 32
_GAUSSIAN_SIGMA = 1 / 8
"""Of the side of a tile, as sliding-window inference usually takes it."""


def usual_overlap(tile: int, usual: int = OVERLAP) -> int:
    """Return the usual overlap of tiles, or a quarter of those that are not larger than it."""
    return usual if usual < tile else tile // 4


def grid(height: int, width: int, size: tuple[int, int], overlap: int, scene: int = 0) -> list[Placement]:
    """Return the tiles of a scene, row by row; `size` is the height and width of a tile.

    Raises:
        DataError: the overlap is not smaller than the tile.
    """
    side = min(size)
    if not 0 <= overlap < side:
        raise DataError(f"expected an overlap from 0 to {side - 1} pixels of tiles of {side}, found {overlap}")
    return [
        Placement(scene, row, column, min(size[0], height - row), min(size[1], width - column))
        for row in starts(height, size[0], overlap)
        for column in starts(width, size[1], overlap)
    ]


def tile_name(scene: str, place: Placement) -> str:
    """Return the record id of a tile."""
    return f"{scene}_r{place.row:05d}_c{place.column:05d}"


def scene_of(name: str) -> str:
    """Return the scene of a tile's record id; of any other one, itself."""
    return re.sub(r"_r\d{5,}_c\d{5,}$", "", name)


def starts(side: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles begin along a side: as few as cover it with this overlap, the last one ending with it."""
    return [min(start, max(side - tile, 0)) for start in range(0, max(side - overlap, 1), tile - overlap)]


def covered(header: Header) -> tuple[float, float]:
    """Return the share of a file's pixels that is padding, and the share of the others that repeats in overlaps."""
    shown = sum(place.height * place.width for place in header.placements)
    scenes = {place.scene for place in header.placements}
    distinct = sum(header.scenes[number].height * header.scenes[number].width for number in scenes)
    return 1 - shown / (len(header.placements) * header.size[0] * header.size[1]), 1 - distinct / shown


def padded(bands: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return bands (C, h, w) continued to `size` by mirrored pixels."""
    height, width = bands.shape[1:]
    return np.pad(bands, ((0, 0), (0, size[0] - height), (0, size[1] - width)), mode="symmetric")


def packed(header: Header, bands: np.ndarray, valid: np.ndarray, positive: np.ndarray | None) -> tuple[Arrays, int]:
    """Return the arrays of a tile or an image as the header has them, and the number of its annotators: 1 or 0.

    Pixels that are not valid become 0, and so that none of them counts, "ignore" in the label.

    Shape:
        bands (C, h, w), valid and positive bool (h, w), not larger than the header's size.
    """
    votes = np.full(header.size, IGNORE, np.uint8)
    height, width = valid.shape
    votes[:height, :width] = np.where(valid, 0 if positive is None else positive, IGNORE)
    counts = padded(np.where(valid, bands, bands.dtype.type(0)), header.size)[None]
    arrays = {"bands": np.ascontiguousarray(counts, np.dtype(header.values.dtype).newbyteorder("<")), "votes": votes}
    return arrays, 0 if positive is None else 1


@dataclass(frozen=True)
class Strip:
    """Finished rows of a scene, from `row` on.

    Shape:
        values uint16 (rows, width), 0 where nothing was predicted; predicted bool (rows, width).
    """

    row: int
    values: np.ndarray
    predicted: np.ndarray


def below(row: int, strips: Iterable[Strip]) -> Iterator[Strip]:
    """Yield what of strips lies at a row of the scene and below it."""
    for strip in strips:
        top = max(row - strip.row, 0)
        if top < len(strip.values):
            yield Strip(strip.row + top, strip.values[top:], strip.predicted[top:])


class Blender:
    """Blends the tiles of a scene, which come row by row, into finished strips; only a strip is in memory."""

    def __init__(self, height: int, width: int, blend: Blend = "hann", row: int = 0) -> None:
        """Begin at a row of the scene, above which no tile reaches."""
        self._height, self._width, self._blend = height, width, blend
        self._row = row  # where the sums begin
        self._sums, self._weights = np.zeros((0, width), np.uint64), np.zeros((0, width), np.uint32)

    def add(self, placement: Placement, values: np.ndarray, valid: np.ndarray | None = None) -> Iterator[Strip]:
        """Add a tile, uint16 and at least as large as its part of the scene, where `valid`; yield what is finished.

        That is what lies above the tile, since no later one reaches there.
        """
        yield from self._finish(placement.row)
        height, width = placement.height, placement.width
        self._grow(placement.row + height)
        weights = window(values.shape[0], self._blend)[:, None] * window(values.shape[1], self._blend)
        weights = weights[:height, :width]
        if valid is not None:
            weights = weights * valid[:height, :width]
        top = placement.row - self._row
        part = (slice(top, top + height), slice(placement.column, placement.column + width))
        self._sums[part] += weights.astype(np.uint64) * values[:height, :width]
        self._weights[part] += weights

    def close(self) -> Iterator[Strip]:
        """Yield the rest."""
        yield from self._finish(self._height)

    def _grow(self, end: int) -> None:
        """Make room for the rows before `end`."""
        missing = end - self._row - len(self._sums)
        if missing > 0:
            self._sums = np.pad(self._sums, ((0, missing), (0, 0)))
            self._weights = np.pad(self._weights, ((0, missing), (0, 0)))

    def _finish(self, row: int) -> Iterator[Strip]:
        count = row - self._row
        assert count >= 0, "tiles come row by row"
        if count == 0:
            return
        self._grow(row)
        sums, weights = self._sums[:count], self._weights[:count]
        values, predicted = np.empty(sums.shape, np.uint16), weights > 0
        for top in range(0, count, _ROWS_AT_ONCE):  # what is made on the way would be larger than the strip
            part = slice(top, top + _ROWS_AT_ONCE)
            values[part] = (sums[part] + weights[part] // 2) // np.maximum(weights[part], 1)  # rounded to the nearest
        first, self._row = self._row, row
        for array in (self._sums, self._weights):  # in place, since a second strip would be the peak of memory
            rest = len(array) - count
            array[:rest], array[rest:] = array[count:], 0
        yield Strip(first, values, predicted)


def window(side: int, blend: Blend) -> np.ndarray:
    """Return the weights along a side, whole numbers from 1 to 255 as uint32 (side,).

    Products of two of them add up to less than 2 ** 32 unless more than 66,000 tiles lie over one pixel.
    """
    place = (np.arange(side) + 0.5) / side
    bell = {"hann": np.sin(np.pi * place) ** 2, "gaussian": np.exp(-(((place - 0.5) / _GAUSSIAN_SIGMA) ** 2) / 2)}
    weights: np.ndarray = np.maximum(1, np.rint(_LARGEST_WEIGHT * bell[blend])).astype(np.uint32)
    return weights
