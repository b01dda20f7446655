"""Masks of scored records counted against their labels, record by record."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from contrails.aggregate.postprocess import Step, apply
from contrails.aggregate.scored import Scored


@dataclass(frozen=True)
class Judged:
    """Pixels of every record, int64 (N,) each: found, found where nothing is, and not found; all that count."""

    hits: np.ndarray
    false: np.ndarray
    missed: np.ndarray
    pixels: np.ndarray

    @property
    def dice(self) -> np.ndarray:
        """Dice of each record, float64 (N,); NaN where nothing is there and nothing was found."""
        total = 2 * self.hits + self.false + self.missed
        dice: np.ndarray = np.divide(2.0 * self.hits, total, out=np.full(len(total), np.nan), where=total > 0)
        return dice


def judge(scored: Scored, thresholds: Mapping[str, float], steps: Sequence[Step] = ()) -> Judged:
    """Cut every record at the threshold of its part, post-process, and count."""
    counts = np.zeros((4, len(scored)), np.int64)
    for index in range(len(scored)):
        mask = apply(scored.probabilities(index), thresholds[str(scored.parts[index])], steps)
        hard, valid = scored.truth(index)
        mask = mask if valid is None else mask & valid
        hits = np.count_nonzero(mask & hard)
        pixels = mask.size if valid is None else np.count_nonzero(valid)
        counts[:, index] = hits, np.count_nonzero(mask) - hits, np.count_nonzero(hard) - hits, pixels
    return Judged(*counts)
