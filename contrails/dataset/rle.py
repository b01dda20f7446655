"""Run-length encoding of masks.

A mask is written as `start length start length ...`, with runs in ascending order that do not overlap. Competitions
differ in whether pixels are numbered down the columns or along the rows, in how a start is written, and in the text of
an empty mask. `Convention` holds these choices. A dataset file stores the convention of its labels, so that submissions
use the same one.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from contrails.errors import DataError

_MAX_DIGITS = 18
"""Largest number of digits, so that the sum of two numbers fits into 64 bits."""


@dataclass(frozen=True)
class Convention:
    """How masks are written in a table.

    Attributes:
        starts: "absolute" starts are pixel numbers from 1; "relative" starts are distances from the end of the
            previous run, from 0.
        order: pixels are numbered down the "columns" (then left to right) or along the "rows" (then top to bottom).
        empty: the text of an empty mask.
        columns: the names of the columns with the ids and the masks.
        ending: text after the record's id in the table, such as ".jpg".
        label: the class whose masks are used, or "" if the table has a single class.
        label_column: the column of the class; "" if the id ends with the class, as in x.jpg_Fish.
    """

    starts: Literal["absolute", "relative"] = "absolute"
    order: Literal["columns", "rows"] = "columns"
    empty: str = "-"
    columns: tuple[str, str] = ("record_id", "encoded_pixels")
    ending: str = ""
    label: str = ""
    label_column: str = ""

    @property
    def suffix(self) -> str:
        """The class at the end of an id, such as "_Fish", or ""."""
        return f"_{self.label}" if self.label and not self.label_column else ""

    def written(self, record_id: str) -> str:
        """Return the id of a record as it is written in a table."""
        return f"{record_id}{self.ending}{self.suffix}"

    @property
    def header(self) -> list[str]:
        """The columns of a table."""
        return [*self.columns, *([self.label_column] if self.label_column else [])]

    def options(self) -> list[str]:
        """Return the options of `contrails prepare` for this convention."""
        words = [f"--rle-starts={self.starts}", f"--rle-order={self.order}", f"--rle-empty={self.empty}"]
        words.append(f"--rle-columns={','.join(self.columns)}")
        label = f"{self.label_column}={self.label}" if self.label_column else self.label
        return [*words, *([f"--rle-class={label}"] if label else [])]


DEFAULT = Convention()
"""The convention of the OpenContrails competition."""


def encode(mask: np.ndarray, convention: Convention = DEFAULT) -> str:
    """Return the encoding of a bool mask (H, W)."""
    assert mask.ndim == 2
    assert mask.dtype == bool
    if not mask.any():
        return convention.empty  # the most frequent case, and 30 times as fast as the general one
    if convention.order == "rows":
        mask = mask.T
    height, width = mask.shape
    # Changes of value alternate between the start of a run and the pixel after its end. Finding them down the columns
    # and sorting them is faster than transposing the mask.
    y, x = np.divmod(np.flatnonzero(mask[1:] != mask[:-1]), width)
    across = (np.flatnonzero(mask[0, 1:] != mask[-1, :-1]) + 1) * height
    ends = [0] * bool(mask[0, 0]) + [mask.size] * bool(mask[-1, -1])
    edges = np.sort(np.concatenate([x * height + y + 1, across, np.array(ends, np.int64)]))
    if convention.starts == "relative":
        return " ".join(map(str, np.diff(edges, prepend=0).tolist()))
    edges += 1
    edges[1::2] -= edges[::2]
    return " ".join(map(str, edges.tolist()))


def decode(text: str, shape: tuple[int, int], convention: Convention = DEFAULT) -> np.ndarray:
    """Return the bool mask (H, W) of an encoding.

    Raises:
        DataError: no pairs of integers, or a run that is empty, outside of the image, out of order or overlapping.
    """
    if text.strip() == convention.empty:
        return np.zeros(shape, bool)
    fields = text.split()
    wrong = [field for field in fields if not (field.isascii() and field.isdecimal() and len(field) <= _MAX_DIGITS)]
    if wrong:
        raise DataError(f"expected whole numbers or '{convention.empty}', found '{wrong[0][:40]}'")
    if not fields or len(fields) % 2:
        raise DataError(f"expected pairs of start and length, or '{convention.empty}', found {len(fields)} numbers")
    numbers = np.array(fields, dtype=np.int64)
    size = shape[0] * shape[1]
    starts, lengths = numbers[::2], numbers[1::2]
    _refuse(lengths < 1, starts, lengths, "is empty")  # bounds come first: they keep the sums below 64 bits
    _refuse((starts > size) | (lengths > size), starts, lengths, f"leaves the image of {size} pixels")
    written = starts
    if convention.starts == "relative":
        starts = 1 + (written + lengths).cumsum() - lengths
    _refuse((starts < 1) | (starts + lengths - 1 > size), written, lengths, f"leaves the image of {size} pixels")
    _refuse(np.r_[False, np.diff(starts) < 0], written, lengths, "begins before the run before it: runs are not sorted")
    _refuse(np.r_[False, starts[1:] < (starts + lengths)[:-1]], written, lengths, "overlaps the run before it")
    edges = np.zeros(size + 1, np.int8)
    np.add.at(edges, starts - 1, 1)
    np.add.at(edges, starts + lengths - 1, -1)
    flat = edges[:-1].cumsum(dtype=np.int8).astype(bool)
    return flat.reshape(shape, order="F" if convention.order == "columns" else "C")


def _refuse(wrong: np.ndarray, starts: np.ndarray, lengths: np.ndarray, what: str) -> None:
    if wrong.any():
        first = int(wrong.argmax())
        raise DataError(f"run {first + 1} (start {starts[first]}, length {lengths[first]}) {what}")
