"""Run-length encoding of masks as the competition wants it.

Pixels are numbered from 1, top to bottom, then left to right (column-major); a mask is `start length start length ...`
with runs in rising order that do not overlap, and `-` where it is empty.
"""

import numpy as np

from contrails.errors import DataError

EMPTY = "-"
_MAX_DIGITS = 18
"""So few that a sum of two numbers fits into 64 bits."""


def encode(mask: np.ndarray) -> str:
    """Return the encoding of a bool mask (H, W)."""
    assert mask.ndim == 2
    assert mask.dtype == bool
    if not mask.any():
        return EMPTY  # most masks are, and this is 30 times as fast
    height, width = mask.shape
    # changes alternate between the start of a run and the pixel after its end; to find them down the columns and then
    # sort them is faster than to transpose the mask
    y, x = np.divmod(np.flatnonzero(mask[1:] != mask[:-1]), width)
    across = (np.flatnonzero(mask[0, 1:] != mask[-1, :-1]) + 1) * height
    ends = [0] * bool(mask[0, 0]) + [mask.size] * bool(mask[-1, -1])
    edges = np.sort(np.concatenate([x * height + y + 1, across, np.array(ends, np.int64)])) + 1
    edges[1::2] -= edges[::2]
    return " ".join(map(str, edges.tolist()))


def decode(text: str, shape: tuple[int, int]) -> np.ndarray:
    """Return the bool mask (H, W) of an encoding.

    Raises:
        DataError: no pairs of whole numbers, or a run that is empty, leaves the image, is out of order or overlaps.
    """
    if text.strip() == EMPTY:
        return np.zeros(shape, bool)
    fields = text.split()
    wrong = [field for field in fields if not (field.isascii() and field.isdecimal() and len(field) <= _MAX_DIGITS)]
    if wrong:
        raise DataError(f"expected whole numbers or '{EMPTY}', found '{wrong[0][:40]}'")
    if not fields or len(fields) % 2:
        raise DataError(f"expected pairs of start and length, or '{EMPTY}', found {len(fields)} numbers")
    numbers = np.array(fields, dtype=np.int64)
    size = shape[0] * shape[1]
    starts, lengths = numbers[::2], numbers[1::2]
    _refuse(lengths < 1, starts, lengths, "is empty")
    _refuse((starts < 1) | (starts + lengths - 1 > size), starts, lengths, f"leaves the image of {size} pixels")
    _refuse(np.r_[False, np.diff(starts) < 0], starts, lengths, "begins before the run before it: runs are not sorted")
    _refuse(np.r_[False, starts[1:] < (starts + lengths)[:-1]], starts, lengths, "overlaps the run before it")
    edges = np.zeros(size + 1, np.int8)
    np.add.at(edges, starts - 1, 1)
    np.add.at(edges, starts + lengths - 1, -1)
    return edges[:-1].cumsum(dtype=np.int8).astype(bool).reshape(shape, order="F")


def _refuse(wrong: np.ndarray, starts: np.ndarray, lengths: np.ndarray, what: str) -> None:
    if wrong.any():
        first = int(wrong.argmax())
        raise DataError(f"run {first + 1} (start {starts[first]}, length {lengths[first]}) {what}")
