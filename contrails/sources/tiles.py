"""Cutting of scenes into tiles of one size, and blending of tiles into scenes.

Tiles are on a grid from the top left, `tile - overlap` pixels apart. The last tile of a row or column is shifted
inward, so that it ends with the scene. Only a scene smaller than a tile is padded, with mirrored pixels and the label
"ignore". Overlapping predictions are blended with a window that decreases towards the edges of a tile. Weights and sums
are integers, so that equal values blend to the same value and the result does not depend on the order; scenes are built
strip by strip. In files of older versions the last tiles are padded instead, as their placements show.
"""

import itertools
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
"""Default side and overlap of tiles, in pixels."""

Blend = Literal["hann", "gaussian"]
_LARGEST_WEIGHT = 255
_ROWS_AT_ONCE = 32
_GAUSSIAN_SIGMA = 1 / 8
"""Sigma of the Gaussian window as a fraction of the tile's side, as usual in sliding-window inference."""


def usual_overlap(tile: int, usual: int = OVERLAP) -> int:
    """Return the default overlap of tiles: `usual`, or a quarter of the tile if the tile is not larger than `usual`."""
    return usual if usual < tile else tile // 4


def grid(height: int, width: int, size: tuple[int, int], overlap: int, scene: int = 0) -> list[Placement]:
    """Return the tiles of a scene, row by row; `size` is the height and width of a tile.

    Raises:
        DataError: the overlap is not smaller than the tile.
    """
    side = min(size)
    if not 0 <= overlap < side:
        raise DataError(
            f"expected an overlap from 0 to {side - 1} pixels of tiles of {side}, found {overlap}; give a smaller "
            "--overlap or a larger --tile"
        )
    corners = itertools.product(starts(height, size[0], overlap), starts(width, size[1], overlap))
    return [
        Placement(scene, row, column, min(size[0], height - row), min(size[1], width - column))
        for row, column in corners
    ]


def tile_name(scene: str, place: Placement) -> str:
    """Return the record id of a tile."""
    return f"{scene}_r{place.row:05d}_c{place.column:05d}"


def scene_of(name: str) -> str:
    """Return the scene of a tile's record id; any other id is returned unchanged."""
    return re.sub(r"_r\d{5,}_c\d{5,}$", "", name)


def starts(side: int, tile: int, overlap: int) -> list[int]:
    """Return the starts of the fewest tiles that cover a side with this overlap; the last one ends with the side."""
    return [min(start, max(side - tile, 0)) for start in range(0, max(side - overlap, 1), tile - overlap)]


def covered(header: Header) -> tuple[float, float]:
    """Return the fraction of a file's pixels that is padding, and the fraction of the rest that repeats in overlaps."""
    shown = sum(place.height * place.width for place in header.placements)
    scenes = {place.scene for place in header.placements}
    distinct = sum(header.scenes[number].height * header.scenes[number].width for number in scenes)
    return 1 - shown / (len(header.placements) * header.size[0] * header.size[1]), 1 - distinct / shown


def padded(bands: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return bands (C, h, w) padded to `size` with mirrored pixels."""
    height, width = bands.shape[1:]
    return np.pad(bands, ((0, 0), (0, size[0] - height), (0, size[1] - width)), mode="symmetric")


def packed(header: Header, bands: np.ndarray, valid: np.ndarray, positive: np.ndarray | None) -> tuple[Arrays, int]:
    """Return the arrays of a tile or an image for a header, and its number of annotators: 1 or 0.

    Pixels that are not valid become 0 in the bands and "ignore" in the label.

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
        values uint16 (rows, width), 0 without a prediction; predicted bool (rows, width).
    """

    row: int
    values: np.ndarray
    predicted: np.ndarray


def below(row: int, strips: Iterable[Strip]) -> Iterator[Strip]:
    """Yield the parts of strips at and below a row of the scene."""
    for strip in strips:
        top = max(row - strip.row, 0)
        if top < len(strip.values):
            yield Strip(strip.row + top, strip.values[top:], strip.predicted[top:])


class Blender:
    """Blends the tiles of a scene, given row by row, into finished strips; only one strip is in memory."""

    def __init__(self, height: int, width: int, blend: Blend = "hann", row: int = 0) -> None:
        """Begin at a row of the scene; no tile may begin above it."""
        self._height, self._width, self._blend = height, width, blend
        self._row = row  # where the sums begin
        self._sums, self._weights = np.zeros((0, width), np.uint64), np.zeros((0, width), np.uint32)

    def add(self, placement: Placement, values: np.ndarray, valid: np.ndarray | None = None) -> Iterator[Strip]:
        """Add the `valid` pixels of a tile, and yield the strips above it, which no later tile changes.

        Shape:
            values uint16 and valid bool, at least as large as the placement.
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
        """Yield the remaining strips."""
        yield from self._finish(self._height)

    def _grow(self, end: int) -> None:
        """Enlarge the sums to the rows before `end`."""
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
        for top in range(0, count, _ROWS_AT_ONCE):  # in pieces, as temporary arrays would be larger than the strip
            part = slice(top, top + _ROWS_AT_ONCE)
            values[part] = (sums[part] + weights[part] // 2) // np.maximum(weights[part], 1)  # rounded to the nearest
        first, self._row = self._row, row
        for array in (self._sums, self._weights):  # in place, as a second strip would double the peak of memory
            rest = len(array) - count
            array[:rest], array[rest:] = array[count:], 0
        yield Strip(first, values, predicted)


def window(side: int, blend: Blend) -> np.ndarray:
    """Return the weights along a side, integers from 1 to 255 as uint32 (side,).

    Sums of products of two weights stay below 2 ** 32 for up to 66,000 tiles over one pixel.
    """
    place = (np.arange(side) + 0.5) / side
    bell = {"hann": np.sin(np.pi * place) ** 2, "gaussian": np.exp(-(((place - 0.5) / _GAUSSIAN_SIGMA) ** 2) / 2)}
    weights: np.ndarray = np.maximum(1, np.rint(_LARGEST_WEIGHT * bell[blend])).astype(np.uint32)
    return weights
