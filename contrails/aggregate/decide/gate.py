"""Two stages: a gate decides whether a record has positive pixels at all, another ensemble decides where.

The gate is also an ensemble, of a classifier or of a segmenter trained on all records. Its score of a record is the
mean logit of the 100 most probable pixels; a record with a score below the cut gets an empty mask. Cut and threshold
are fitted together out of fold. The members for the masks may be trained on positive records only.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from contrails.aggregate.decide.postprocess import top_logit
from contrails.aggregate.members.prediction_files import PredictRows
from contrails.aggregate.members.scored import LEVELS, Scored

_CUTS = 64
"""Number of quantiles of the scores that are tried as cuts."""

NO_GATE = -1e9
"""A cut below every score, so that no record is emptied."""


@dataclass(frozen=True)
class Gate:
    """The cuts of a gate: for each fold as fitted on the other folds, and as fitted on all.

    Shape:
        scores float64 (N,).
    """

    scores: np.ndarray
    by_fold: dict[str, float]
    cut: float

    def cross_fitted(self, scored: Scored) -> Scored:
        """Return the records with probabilities of 0 where the gate's score is below the cut of the record's fold."""
        return self._applied(scored, np.array([self.by_fold[str(fold)] for fold in scored.folds]))

    def final(self, scored: Scored) -> Scored:
        """Return the records as `cross_fitted` does, but all with the cut that was fitted on all folds."""
        return self._applied(scored, np.full(len(scored), self.cut))

    def _applied(self, scored: Scored, cuts: np.ndarray) -> Scored:
        def images(index: int) -> np.ndarray:
            found = scored.images(index)
            return np.zeros_like(found) if self.scores[index] < cuts[index] else found

        return replace(scored, images=images)


def fit_gate(scored: Scored, scores: np.ndarray) -> Gate:
    """Return the cuts that maximise global Dice, each together with the best of 256 thresholds.

    Each record is counted in the interval between two cuts that holds its score. Sums over these intervals then give
    the counts for every cut, so that all cuts and thresholds are compared in one pass over the records.

    Shape:
        scores float64 (N,), in the order of the records.
    """
    cuts = np.unique(np.quantile(scores, np.arange(_CUTS) / _CUTS, method="lower"))
    cuts[0] = NO_GATE
    folds = [str(fold) for fold in np.unique(scored.folds)]
    positive, negative = np.zeros((2, len(folds), len(cuts), LEVELS), np.int64)
    for index, score in enumerate(scores):
        place = folds.index(str(scored.folds[index])), int(np.searchsorted(cuts, score, side="right")) - 1
        coarse, (hard, valid) = scored.probabilities(index) // (65_536 // LEVELS), scored.truth(index)
        found = np.bincount(coarse[hard], minlength=LEVELS)
        positive[place] += found
        negative[place] += np.bincount((coarse if valid is None else coarse[valid]).ravel(), minlength=LEVELS) - found
    whole = positive.sum(0), negative.sum(0)
    rest = {fold: (whole[0] - positive[i], whole[1] - negative[i]) for i, fold in enumerate(folds)}
    chosen = {fold: float(cuts[_best(*(others if len(folds) > 1 else whole))]) for fold, others in rest.items()}
    return Gate(scores, chosen, float(cuts[_best(*whole)]))


def behind_gate(masks: PredictRows, gate: PredictRows, cut: float) -> PredictRows:
    """Return a function that predicts masks, with probabilities of 0 where the gate's score is below the cut."""

    def predict(rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch, probabilities in masks(rows):
            scores = np.array([top_logit(image) for _, images in gate(batch) for image in images])
            probabilities[scores < cut] = 0
            yield batch, probabilities

    return predict


def _best(positive: np.ndarray, negative: np.ndarray) -> int:
    """Return the index of the cut with the largest Dice, from counts by interval of the score, int64 (cuts, levels)."""
    kept = positive[::-1].cumsum(0)[::-1], negative[::-1].cumsum(0)[::-1]
    hits, wrong = (counts[:, ::-1].cumsum(1)[:, ::-1] for counts in kept)
    total = hits + wrong + positive.sum()
    dice = np.divide(2.0 * hits, total, out=np.zeros(total.shape), where=total > 0)
    return int(dice.max(1).argmax())
