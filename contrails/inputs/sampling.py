"""The records, windows and random numbers of each training step, as a function of (seed, fold, step) only."""

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from contrails.dataset.store import Dataset
from contrails.draws import generator
from contrails.errors import DataError, RecipeError
from contrails.recipe.augment import MIXING, NUM_DRAWS
from contrails.recipe.recipe import Recipe

log = logging.getLogger(__name__)

_NUM_ELEMENTS = 8
"""Elements of the dihedral group of the square; number 0 is the identity."""

_MUCH_LEFT_OUT = 0.1
"""A warning is logged if an epoch leaves out more than this fraction of the records."""

_WITHOUT_TRANSPOSING = 3
"""Mask that removes the transposition from an element, as it would exchange height and width of a record."""


@dataclass(frozen=True)
class Selection:
    """The specification of one batch.

    Shape:
        rows int64 (B,): rows of the dataset file; corners: top and left pixel of the window of each sample, `side`
        pixels wide and high, or empty for whole records; elements: the dihedral element of each sample (see
        `contrails.inputs.augment`), or empty; draws: float64 (B, NUM_DRAWS) from 0 to 1 for each other kind of
        augmentation (see `contrails.inputs.augment.chain`); fraction: fraction of the step's records in this batch.
    """

    rows: np.ndarray
    corners: Sequence[tuple[int, int]] = ()
    side: int = 0
    elements: Sequence[int] = ()
    draws: Mapping[str, np.ndarray] = field(default_factory=dict)
    fraction: float = 1.0

    def split(self, count: int) -> "list[Selection]":
        """Return up to `count` selections of nearly equal size, in order; none is empty."""
        ends = [len(self.rows) * index // count for index in range(count + 1)]
        return [self._slice(slice(first, last)) for first, last in itertools.pairwise(ends) if first < last]

    def _slice(self, piece: slice) -> "Selection":
        return replace(
            self,
            rows=self.rows[piece],
            corners=self.corners[piece],
            elements=self.elements[piece],
            draws={kind: numbers[piece] for kind, numbers in self.draws.items()},
            fraction=(piece.stop - piece.start) / len(self.rows),
        )


def require_crop_fits(recipe: Recipe, dataset: Dataset) -> None:
    """Check that a crop is not larger than the records.

    Raises:
        RecipeError: it is.
    """
    height, width = dataset.votes.shape[1:]
    if recipe.data.crop is not None and recipe.data.crop > min(height, width):
        raise RecipeError(
            f"data.crop = {recipe.data.crop}: expected at most the size of the records of {dataset.path}, "
            f"{height} x {width} pixels; choose a smaller crop, or leave it out"
        )


def require_ranks_fit(recipe: Recipe, num_ranks: int) -> None:
    """Check that with several ranks every piece has a record, or two with augmentation that combines samples.

    Raises:
        RecipeError: a piece has fewer.
    """
    section = recipe.train
    needed = num_ranks * section.accumulate * (2 if set(MIXING) & set(recipe.augment.kinds) else 1)
    if num_ranks > 1 and (not section.drop_last or section.batch_size < needed):
        raise RecipeError(
            f"{num_ranks} ranks with {section.accumulate} pieces each need train.drop_last = true and a "
            f"train.batch_size of at least {needed}, found {section.drop_last} and "
            f"{section.batch_size}; change the recipe, or num_ranks in the site profile"
        )


class Sampler:
    """Assigns the training records of a fold to steps.

    Raises:
        DataError: `train.positive_share` is set, and all or none of the fold's records are positive.
    """

    def __init__(self, dataset: Dataset, recipe: Recipe, rows: np.ndarray, fold: str) -> None:
        self._dataset, self._recipe, self._rows, self._fold = dataset, recipe, rows, fold
        self.batch_size = min(recipe.train.batch_size, len(rows))
        if self.batch_size < recipe.train.batch_size:
            log.warning(
                "train.batch_size = %d is more than the records of fold %s (%d): every step uses all of them",
                *(recipe.train.batch_size, fold, len(rows)),
            )
        steps = len(rows) / self.batch_size
        self.steps_per_epoch = math.floor(steps) if recipe.train.drop_last else math.ceil(steps)
        self._warn_of_left_out()
        self._positive: np.ndarray | None = None
        if recipe.train.positive_share is not None:
            self._positive = dataset.positive_pixels(rows) > 0
            if len(set(self._positive)) < 2:
                raise DataError(
                    f"train.positive_share = {recipe.train.positive_share}: expected positive and negative records in "
                    f"fold {fold}, found {np.count_nonzero(self._positive)} positive of {len(rows)}; leave the key out"
                )
        self._epoch = -1
        self._order = rows

    def _warn_of_left_out(self) -> None:
        left_out = len(self._rows) - self.steps_per_epoch * self.batch_size
        if self._recipe.train.drop_last and left_out > _MUCH_LEFT_OUT * len(self._rows):
            log.warning(
                "fold %s: an epoch has %d steps of %d records and leaves out %d of %d; set train.drop_last = false, or "
                "train.batch_size = %d",
                *(self._fold, self.steps_per_epoch, self.batch_size, left_out, len(self._rows)),
                len(self._rows) // (self.steps_per_epoch + 1),
            )

    def selections(self, step: int, pieces: int, rank: int = 0, num_ranks: int = 1) -> Iterator[Selection]:
        """Yield the pieces of one rank for all steps from `step` on; each step has `pieces` pieces per rank."""
        for number in itertools.count(step):
            yield from self.selection(number).split(pieces * num_ranks)[rank::num_ranks]

    def smallest_step(self) -> int:
        """Return the number of records of the smallest step, which is the last one of an epoch."""
        return self.num_records(self.steps_per_epoch - 1)

    def num_records(self, step: int) -> int:
        """Return the number of records of a step."""
        before = step % self.steps_per_epoch * self.batch_size
        return self.batch_size if self._recipe.train.drop_last else min(self.batch_size, len(self._rows) - before)

    def selection(self, step: int) -> Selection:
        """Return the batch of step number `step` (from 0)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._order_of(epoch)
        rows = self._order[position * self.batch_size : (position + 1) * self.batch_size]
        return Selection(
            rows,
            self._corners(step, rows),
            self._recipe.data.crop or 0,
            self._elements(step, len(rows)),
            self._draws(step, len(rows)),
        )

    def _order_of(self, epoch: int) -> np.ndarray:
        """Return the rows of an epoch in the order of its steps."""
        # a generator of its own for each epoch: a resumed fold needs no earlier epoch to continue in the same order
        section = self._recipe.train
        random = generator(self._recipe.seed, "order", self._fold, epoch)
        count = self.steps_per_epoch * self.batch_size if section.drop_last else len(self._rows)
        if self._positive is None or section.positive_share is None:
            return self._drawn(self._rows, count, random)
        # Position i is positive if rounding (i + 1) * positive_share gives more than rounding i * positive_share. So
        # positives are evenly spaced, and their numbers in any two batches differ by at most one.
        positive = np.diff(np.floor(np.arange(count + 1) * section.positive_share + 0.5)).astype(bool)
        order = np.empty(count, np.int64)
        order[positive] = self._drawn(self._rows[self._positive], int(positive.sum()), random)
        order[~positive] = self._drawn(self._rows[~self._positive], int((~positive).sum()), random)
        return order

    def _drawn(self, rows: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
        """Return `count` of `rows`: shuffled passes, or draws with equal probability for each location."""
        if not self._recipe.train.balance_groups:
            passes = [random.permutation(rows) for _ in range(-(-count // len(rows)))]
            return np.concatenate([*passes, rows[:0]])[:count]
        places = np.array([self._dataset.groups[row] for row in rows])
        _, place, size = np.unique(places, return_inverse=True, return_counts=True)
        weights = 1 / size[place]
        return random.choice(rows, count, p=weights / weights.sum())

    def _elements(self, step: int, count: int) -> list[int]:
        """Draw the dihedral element of each sample: with the recipe's probability a random one, else the identity."""
        random = generator(self._recipe.seed, "dihedral", self._fold, step)
        chosen = random.random(count) < self._recipe.augment.dihedral
        elements = np.where(chosen, random.integers(0, _NUM_ELEMENTS, count), 0)
        height, width = self._dataset.votes.shape[1:]
        if self._recipe.data.crop is None and height != width:
            elements &= _WITHOUT_TRANSPOSING
        return [int(element) for element in elements]

    def _draws(self, step: int, count: int) -> dict[str, np.ndarray]:
        """Draw the random numbers of the other enabled kinds: NUM_DRAWS for every sample, augmented or not."""
        return {
            kind: generator(self._recipe.seed, kind, self._fold, step).random((count, NUM_DRAWS))
            for kind in self._recipe.augment.kinds
        }

    def _corners(self, step: int, rows: np.ndarray) -> list[tuple[int, int]]:
        if self._recipe.data.crop is None:
            return []
        # the same number of draws for every sample, used or not, so that no sample depends on the others
        draws = generator(self._recipe.seed, "crop", self._fold, step).random((len(rows), 4))
        return [self._corner(row, *draw) for row, draw in zip(rows, draws, strict=True)]

    def _corner(self, row: int, ask: float, which: float, down: float, right: float) -> tuple[int, int]:
        """Return the corner of a random window, which with probability `crop_positive` holds a positive pixel."""
        crop, (height, width) = self._recipe.data.crop, self._dataset.votes.shape[1:]
        assert crop is not None
        low, high = (0, 0), (height - crop, width - crop)
        if ask < self._recipe.data.crop_positive:
            positive = np.argwhere(self._dataset.hard(row))
            if len(positive):
                y, x = positive[int(which * len(positive))]
                low = max(0, y - crop + 1), max(0, x - crop + 1)
                high = min(y, high[0]), min(x, high[1])
        top, left = (int(lo + draw * (hi - lo + 1)) for lo, hi, draw in zip(low, high, (down, right), strict=True))
        return top, left
