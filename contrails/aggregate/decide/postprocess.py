"""Post-processing of masks, and the test that decides which steps are kept.

A step is kept if it increases the global Dice out of fold by more than its noise. Its value is fitted on the other
folds; the gain is measured over all folds; the noise is twice the standard error of the gain, by a bootstrap over
groups. Masks are stored as bits, 8 KB per record of 256 x 256 pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from contrails.aggregate.decide.threshold import level_of
from contrails.aggregate.members.scored import Scored, redraws
from contrails.metrics import NUM_BINS
from contrails.progress import Advance, bar

_TOP_PIXELS = 100
_DRAWS = 300
_ERRORS = 2.0
_CROSS, _SQUARE = ndimage.generate_binary_structure(2, 1), ndimage.generate_binary_structure(2, 2)


@dataclass(frozen=True)
class Step:
    """One change of a mask: `name` is a key of `OPERATIONS` or `empty_below`, `value` its parameter."""

    name: str
    value: float


def apply(probabilities: np.ndarray, threshold: float, steps: Sequence[Step]) -> np.ndarray:
    """Return the post-processed mask of stored probabilities.

    Shape:
        uint16 (H, W) to bool (H, W).
    """
    mask: np.ndarray = probabilities >= level_of(threshold)
    for step in steps:
        if not mask.any():
            return mask
        if step.name == EMPTY_RULE:
            if top_logit(probabilities) < step.value:
                return np.zeros_like(mask)
        else:
            mask = OPERATIONS[step.name](mask, step.value)
    return mask


def top_logit(probabilities: np.ndarray) -> float:
    """Return the mean logit of the 100 most probable pixels of a record."""
    flat = probabilities.ravel()
    top = np.partition(flat, -min(_TOP_PIXELS, flat.size))[-_TOP_PIXELS:].astype(np.float64)
    return float(np.log((top + 0.5) / (NUM_BINS - top - 0.5)).mean())


def _opened(mask: np.ndarray, times: float) -> np.ndarray:
    found: np.ndarray = ndimage.binary_opening(mask, _CROSS, iterations=int(times))
    return found


def _closed(mask: np.ndarray, times: float) -> np.ndarray:
    padding = int(times)  # outside the image is background: without padding, erosion would remove the mask at the edge
    found: np.ndarray = ndimage.binary_closing(np.pad(mask, padding), _SQUARE, iterations=padding)
    return found[padding:-padding, padding:-padding]


def _without_holes(mask: np.ndarray, largest: float) -> np.ndarray:
    holes, count = ndimage.label(~mask, _CROSS)  # 4-connected: pixels of the mask that touch diagonally close a hole
    sizes = np.bincount(holes.ravel(), minlength=count + 1)
    edge = np.concatenate([holes[0], holes[-1], holes[:, 0], holes[:, -1]])
    fill = sizes <= largest
    fill[0] = False
    fill[edge] = False
    filled: np.ndarray = mask | fill[holes]
    return filled


def _without_small(mask: np.ndarray, smallest: float) -> np.ndarray:
    components, count = ndimage.label(mask, _SQUARE)
    keep = np.bincount(components.ravel(), minlength=count + 1) >= smallest
    keep[0] = False
    kept: np.ndarray = keep[components]
    return kept


EMPTY_RULE = "empty_below"
OPERATIONS: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "opening": _opened,
    "closing": _closed,
    "fill_holes_to": _without_holes,
    "min_area": _without_small,
}
_VALUES: dict[str, tuple[float, ...]] = {
    "opening": (1,),
    "closing": (1, 2),
    "fill_holes_to": (8, 64),
    "min_area": (5, 10, 20, 40, 80, 160),
}
"""Parameters that are tried, in pixels; the rule for empty records has an exact optimum instead."""


Row = dict[str, Any]
"""A row of the table of decisions: step, value, dice, gain, noise, kept."""


@dataclass(frozen=True)
class Decided:
    """The steps that are kept, the table, and the resulting counts: hits, predicted, actual, int64 (3, N)."""

    steps: tuple[Step, ...]
    rows: list[Row]
    counts: np.ndarray


def decide(scored: Scored, thresholds: dict[str, float]) -> Decided:
    """Try each step on the masks that result from the steps kept before it.

    Args:
        scored: records of at least two folds.
        thresholds: threshold of each fold, fitted on the others.
    """
    trial = _Trial(scored)
    steps: list[Step] = []
    with bar("post-processing", (1 + len(_VALUES)) * len(scored)) as advance:
        trial.cut(thresholds, advance)
        rows = [_row("threshold alone", None, trial.counts, trial, trial.counts) | {"kept": None}]
        for name, values in _VALUES.items():
            counts = trial.attempt(name, values, advance)
            choices, value = _cross_fitted(trial, counts)
            after = _taken(trial.counts, counts, choices)
            row = _row(name, values[value - 1] if value else None, after, trial, trial.counts)
            row["kept"] = row["kept"] and value > 0
            if row["kept"]:
                steps.append(Step(name, values[value - 1]))
                trial.take(name, values, choices, after)
            rows.append(row)
    cuts, lowest = _empty_cuts(trial)
    emptied = trial.counts * ~((trial.scores < cuts) & [[True], [True], [False]])
    rows.append(_row(EMPTY_RULE, lowest, emptied, trial, trial.counts))
    if rows[-1]["kept"]:
        steps.append(Step(EMPTY_RULE, lowest))
        trial.counts = emptied
    known = trial.counts * ~((trial.counts[2] == 0) & [[True], [True], [False]])
    rows.append(_row("if empty records were known", None, known, trial, trial.counts) | {"kept": None})
    return Decided(tuple(steps), rows, trial.counts)


def compare(
    step: str, value: float, before: tuple[Scored, dict[str, float]], after: tuple[Scored, dict[str, float]]
) -> Row:
    """Return the table row of a step that changes probabilities; `before` and `after` are records and thresholds."""
    trials = [_Trial(scored) for scored, _ in (before, after)]
    with bar(step, sum(len(trial.scored) for trial in trials)) as advance:
        for trial, (_, thresholds) in zip(trials, (before, after), strict=True):
            trial.cut(thresholds, advance)
    return _row(step, value, trials[1].counts, trials[0], trials[0].counts)


class _Trial:
    """The masks of scored records while steps are tried, so that nothing is predicted or cut twice.

    `counts` int64 (3, N) are hits, predicted and actual; `scores` (N,) are top logits. Empty masks are not stored:
    no step adds pixels to one.
    """

    def __init__(self, scored: Scored) -> None:
        self.scored, self.groups = scored, scored.groups
        self.counts, self.scores = np.zeros((3, len(scored)), np.int64), np.zeros(len(scored))
        self._bits: dict[int, np.ndarray] = {}
        self._shape = scored.dataset.votes.shape[1:]

    def cut(self, thresholds: dict[str, float], advance: Advance) -> None:
        for index, fold in enumerate(self.scored.folds):
            probabilities = self.scored.probabilities(index)
            self.scores[index] = top_logit(probabilities)
            self._set(index, probabilities >= level_of(thresholds[str(fold)]))
            advance(1)

    def attempt(self, name: str, values: Sequence[float], advance: Advance) -> np.ndarray:
        """Return the counts for each value of a step, int64 (values, 3, N)."""
        found = np.repeat(self.counts[None], len(values), axis=0)
        for index in range(len(self.scored)):
            if index in self._bits:
                mask = self._mask(index)
                for number, value in enumerate(values):
                    found[number, :, index] = self._count(index, OPERATIONS[name](mask, value))
            advance(1)
        return found

    def take(self, name: str, values: Sequence[float], choices: np.ndarray, counts: np.ndarray) -> None:
        """Apply a step to each record's mask: choice 0 leaves the mask, choice n applies `values[n - 1]`."""
        for index in list(self._bits):
            if choices[index]:
                self._set(index, OPERATIONS[name](self._mask(index), values[choices[index] - 1]))
        assert np.array_equal(counts, self.counts)

    def _mask(self, index: int) -> np.ndarray:
        size = int(np.prod(self._shape))
        return np.unpackbits(self._bits[index], count=size).view(bool).reshape(self._shape)

    def _set(self, index: int, mask: np.ndarray) -> None:
        self.counts[:, index] = self._count(index, mask)
        self._bits.pop(index, None)
        if mask.any():
            self._bits[index] = np.packbits(mask)

    def _count(self, index: int, mask: np.ndarray) -> tuple[int, int, int]:
        hard, valid = self.scored.truth(index)
        if valid is not None:
            mask = mask & valid
        return int((mask & hard).sum()), int(mask.sum()), int(hard.sum())


def _dice(counts: np.ndarray) -> np.ndarray:
    """Return the global Dice over the last axis of counts (..., 3, N)."""
    hits, predicted, actual = np.moveaxis(counts.sum(-1), -1, 0)
    total = predicted + actual
    dice: np.ndarray = np.divide(2.0 * hits, total, out=np.zeros(np.shape(total)), where=total > 0)
    return dice


def _cross_fitted(trial: _Trial, counts: np.ndarray) -> tuple[np.ndarray, int]:
    """Return each record's best choice on the other folds, int64 (N,), and the best on all; choices as in `take`."""
    options = np.concatenate([trial.counts[None], counts])
    choices = np.zeros(options.shape[-1], np.int64)
    for fold in np.unique(trial.scored.folds):
        inside = trial.scored.folds == fold
        choices[inside] = _dice(options[..., ~inside]).argmax()
    return choices, int(_dice(options).argmax())


def _taken(current: np.ndarray, counts: np.ndarray, choices: np.ndarray) -> np.ndarray:
    options = np.concatenate([current[None], counts])
    taken: np.ndarray = options[choices, :, np.arange(len(choices))].T
    return taken


def _empty_cuts(trial: _Trial) -> tuple[np.ndarray, float]:
    """Return for each record the cut below which it is empty, fitted on the other folds, and the cut fitted on all."""
    cuts = np.zeros(len(trial.scores))
    for fold in np.unique(trial.scored.folds):
        inside = trial.scored.folds == fold
        cuts[inside] = _best_cut(trial.counts[:, ~inside], trial.scores[~inside])
    return cuts, _best_cut(trial.counts, trial.scores)


def _best_cut(counts: np.ndarray, scores: np.ndarray) -> float:
    """Return the cut with the largest Dice when all records with a lower score are emptied; it may empty none."""
    order = np.argsort(scores, kind="stable")
    lost = np.concatenate([np.zeros((2, 1), np.int64), counts[:2, order].cumsum(1)], axis=1)
    hits, predicted = counts[:2].sum(1)[:, None] - lost
    total = predicted + counts[2].sum()
    number = int(np.divide(2.0 * hits, total, out=np.zeros(len(hits)), where=total > 0).argmax())
    ends = np.concatenate([[scores[order[0]] - 1], scores[order], [scores[order[-1]] + 1]])
    return float((ends[number] + ends[number + 1]) / 2)


def _row(step: str, value: float | None, after: np.ndarray, trial: _Trial, before: np.ndarray) -> Row:
    dice, gain = float(_dice(after)), float(_dice(after) - _dice(before))
    summed = [
        np.stack([np.bincount(trial.groups, row, int(trial.groups.max()) + 1) for row in counts])
        for counts in (before, after)
    ]
    drawn = list(redraws(summed[0].shape[1], _DRAWS, "postprocess"))
    gains = [float(_dice(summed[1] * weights) - _dice(summed[0] * weights)) for weights in drawn]
    noise = _ERRORS * float(np.std(gains))
    return {"step": step, "value": value, "dice": dice, "gain": gain, "noise": noise, "kept": gain > noise}
