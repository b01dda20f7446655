"""Comparing the masks of scored records with their labels, and choosing the most informative records."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from contrails.aggregate.decide.postprocess import Step, apply
from contrails.aggregate.members.scored import Scored
from contrails.draws import generator
from contrails.metrics import NUM_BINS

KINDS = {
    "worst": "the lowest Dice of the records with positive pixels",
    "best": "the highest Dice",
    "false positive": "no positive pixels, but some were predicted",
    "missed": "the most positive pixels that were not predicted",
    "random": "chosen at random",
}
"""Why a record was chosen for the gallery."""

KINDS_OF_ANSWERS = {
    "farthest": "the probability is farthest from the truth",
    "nearest": "the probability is nearest to the truth",
    "false positive": "the record is negative, but was predicted positive",
    "missed": "the record is positive, but was predicted negative",
    "random": "chosen at random",
}
"""The same for a classifier, which makes one prediction per record."""


@dataclass(frozen=True)
class Judged:
    """Numbers of pixels per record, int64 (N,): true positives, false positives, false negatives, all but ignored ones.

    For a classifier a record counts as one pixel, and `answers` are its probabilities, float64 (N,).
    """

    hits: np.ndarray
    false: np.ndarray
    missed: np.ndarray
    pixels: np.ndarray
    answers: np.ndarray | None = None

    @property
    def kinds(self) -> dict[str, str]:
        """The reasons why a record may be chosen, with their meaning."""
        return KINDS if self.answers is None else KINDS_OF_ANSWERS

    @property
    def counts(self) -> np.ndarray:
        """True positives, predicted and actual positives of each record, int64 (3, N)."""
        return np.stack([self.hits, self.hits + self.false, self.hits + self.missed])

    @property
    def dice(self) -> np.ndarray:
        """Dice of each record, float64 (N,); NaN if nothing is positive and nothing was predicted."""
        total = 2 * self.hits + self.false + self.missed
        dice: np.ndarray = np.divide(2.0 * self.hits, total, out=np.full(len(total), np.nan), where=total > 0)
        return dice


def judge(scored: Scored, thresholds: Mapping[str, float], steps: Sequence[Step] = ()) -> Judged:
    """Cut each record at the threshold of its fold, post-process, and count pixels."""
    counts = np.zeros((4, len(scored)), np.int64)
    answers = np.zeros(len(scored)) if scored.by == "record" else None
    for index in range(len(scored)):
        probabilities = scored.probabilities(index)
        mask = apply(probabilities, thresholds[str(scored.folds[index])], steps)
        hard, valid = scored.truth(index)
        mask = mask if valid is None else mask & valid
        hits = np.count_nonzero(mask & hard)
        pixels = mask.size if valid is None else np.count_nonzero(valid)
        counts[:, index] = hits, np.count_nonzero(mask) - hits, np.count_nonzero(hard) - hits, pixels
        if answers is not None:
            answers[index] = probabilities.item() / (NUM_BINS - 1)
    return Judged(counts[0], counts[1], counts[2], counts[3], answers)


def choose(judged: Judged, count: int) -> list[tuple[int, str]]:
    """Return up to `count` different records, each with the reason why it was chosen."""
    actual, dice = judged.hits + judged.missed, judged.dice
    random = generator(0, "gallery").permutation(len(actual))
    false, missed = (actual == 0) & (judged.false > 0), judged.missed > 0
    orders: list[np.ndarray]
    if judged.answers is None:
        orders = [_ranked(dice, actual > 0), _ranked(-dice, actual > 0)]
        orders += [_ranked(-judged.false, false), _ranked(-judged.missed, missed)]
    else:
        error, counted = np.abs((actual > 0) - judged.answers), judged.pixels > 0
        orders = [_ranked(-error, counted), _ranked(error, counted), _ranked(-error, false), _ranked(-error, missed)]
    ranked = dict(zip(judged.kinds, [*orders, random], strict=True))
    share, chosen = max(1, count // len(ranked)), dict[int, str]()
    for kind, candidates in ranked.items():
        free = [int(index) for index in candidates if int(index) not in chosen]
        wanted = count - len(chosen) if kind == "random" else share
        chosen |= dict.fromkeys(free[:wanted], kind)
    return list(chosen.items())


def _ranked(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    indices = np.flatnonzero(among)
    ordered: np.ndarray = indices[np.argsort(values[indices], kind="stable")]
    return ordered
