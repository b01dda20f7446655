"""Masks of scored records counted against their labels, record by record, and those that tell most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from contrails.aggregate.postprocess import Step, apply
from contrails.aggregate.scored import Scored
from contrails.draws import generator

KINDS = {
    "worst": "the lowest Dice where something is there",
    "best": "the highest Dice",
    "false positive": "nothing is there, and something was found",
    "missed": "most pixels not found",
    "random": "drawn by chance",
}
"""Why a record is worth a look."""


@dataclass(frozen=True)
class Judged:
    """Pixels of every record, int64 (N,) each: found, found where nothing is, and not found; all that count."""

    hits: np.ndarray
    false: np.ndarray
    missed: np.ndarray
    pixels: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """Hits, predicted and actual of each record, int64 (3, N)."""
        return np.stack([self.hits, self.hits + self.false, self.hits + self.missed])

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


def choose(judged: Judged, count: int) -> list[tuple[int, str]]:
    """Return up to `count` records with the kind that each was chosen for, every record once."""
    actual, dice = judged.hits + judged.missed, judged.dice
    random = generator(0, "gallery").permutation(len(actual))
    ranked: dict[str, np.ndarray] = {
        "worst": _ranked(dice, actual > 0),
        "best": _ranked(-dice, actual > 0),
        "false positive": _ranked(-judged.false, (actual == 0) & (judged.false > 0)),
        "missed": _ranked(-judged.missed, judged.missed > 0),
        "random": random,
    }
    share, chosen = max(1, count // len(KINDS)), dict[int, str]()
    for kind, candidates in ranked.items():
        free = [int(index) for index in candidates if int(index) not in chosen]
        wanted = count - len(chosen) if kind == "random" else share
        chosen |= dict.fromkeys(free[:wanted], kind)
    return list(chosen.items())


def _ranked(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    indices = np.flatnonzero(among)
    ordered: np.ndarray = indices[np.argsort(values[indices], kind="stable")]
    return ordered
