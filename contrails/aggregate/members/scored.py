"""Labelled records with their probabilities, on which thresholds, weights and post-processing are fitted and scored.

A segmenter is scored by pixel. A classifier is scored by record: each record is then treated as an image of one pixel,
which is positive if the record has any positive pixel. So the same code counts pixels and records.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from contrails.dataset.store import IGNORE, Dataset
from contrails.draws import generator
from contrails.metrics import NUM_BINS, Histogram

By = Literal["pixel", "record"]
"""What scores count."""

LEVELS = 256
"""Number of coarse bins of probability, for histograms of every group."""


@dataclass(frozen=True)
class Scored:
    """Records of a dataset with merged probabilities; each belongs to a fold, all held-out records to "held out".

    Shape:
        rows int64 (N,); folds str (N,); images: a function from an index to uint16 (H, W).
    """

    dataset: Dataset
    rows: np.ndarray
    folds: np.ndarray
    images: Callable[[int], np.ndarray]
    by: By = "pixel"

    def probabilities(self, index: int) -> np.ndarray:
        """Return the probabilities to score, uint16 (H, W); by record (1, 1)."""
        return self.images(index) if self.by == "pixel" else of_record(self.images(index))

    @property
    def groups(self) -> np.ndarray:
        """Number of each record's group, int64 (N,): records of one location and time are drawn together."""
        names = np.array([self.dataset.groups[row] for row in self.rows])
        numbers: np.ndarray = np.unique(names, return_inverse=True)[1]
        return numbers

    def truth(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the positive pixels, bool (H, W), and the valid ones, None if all are valid; by record (1, 1)."""
        row = self.rows[index]
        ignored, hard = self.dataset.votes[row] == IGNORE, self.dataset.hard(row)
        if self.by == "record":
            ignored, hard = ~any_of(~ignored), any_of(hard)
        return hard, ~ignored if ignored.any() else None

    def __len__(self) -> int:
        return len(self.rows)


def of_record(image: np.ndarray) -> np.ndarray:
    """Return a classifier's probability of a record, uint16 (1, 1); all its pixels are equal except for rounding."""
    return np.full((1, 1), round(float(image.mean())), np.uint16)


def any_of(mask: np.ndarray) -> np.ndarray:
    """Return whether a mask of a record has any pixel, bool (1, 1)."""
    return np.full((1, 1), mask.any())


@dataclass(frozen=True)
class Tally:
    """Histograms of scored records: exact ones by fold, coarse ones by group.

    Shape:
        positive and negative int64 (groups, 256).
    """

    by_fold: dict[str, Histogram]
    positive: np.ndarray
    negative: np.ndarray

    @property
    def pooled(self) -> Histogram:
        return sum(self.by_fold.values(), Histogram.empty())

    def others(self, fold: str) -> Histogram:
        """Return the histogram of all folds but this one; of this one if there is no other."""
        rest = [histogram for name, histogram in self.by_fold.items() if name != fold]
        return sum(rest, Histogram.empty()) if rest else self.by_fold[fold]


def tally(scored: Scored) -> Tally:
    """Return the histograms, in one pass over the records."""
    groups = scored.groups
    by_fold = {str(fold): Histogram.empty() for fold in np.unique(scored.folds)}
    positive, negative = np.zeros((2, int(groups.max(initial=-1)) + 1, LEVELS), np.int64)
    for index in range(len(scored)):
        probs, (hard, valid) = scored.probabilities(index), scored.truth(index)
        counts = np.bincount((probs if valid is None else probs[valid]).ravel(), minlength=NUM_BINS)
        histogram = by_fold[str(scored.folds[index])]
        if hard.any():
            found = np.bincount(probs[hard], minlength=NUM_BINS)
            counts -= found
            np.add(histogram.positive, found, out=histogram.positive)
            positive[groups[index]] += found.reshape(LEVELS, -1).sum(1)
        np.add(histogram.negative, counts, out=histogram.negative)
        negative[groups[index]] += counts.reshape(LEVELS, -1).sum(1)
    return Tally(by_fold, positive, negative)


def redraws(num_groups: int, draws: int, purpose: str) -> Iterator[np.ndarray]:
    """Yield how often each group is drawn in each bootstrap sample, float64 (groups,); the same at every call."""
    random = generator(0, "bootstrap", purpose)
    for _ in range(draws):
        yield np.bincount(random.integers(0, num_groups, num_groups), minlength=num_groups).astype(np.float64)
