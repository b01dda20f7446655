"""Two stages: a gate says whether a record holds a contrail at all, another ensemble says where.

The gate is an ensemble too: of a classifier, or of a segmenter on all records. Its score of a record is the mean logit
of its 100 most probable pixels; below a cut the record is empty. Cut and threshold are fitted together out of fold, the
masks may come from members that were trained on positive records only.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from contrails.aggregate.decide.postprocess import top_logit
from contrails.aggregate.members.prediction_files import PredictRows
from contrails.aggregate.members.scored import LEVELS, Scored

_CUTS = 64
"""Quantiles of the scores that are tried as cuts."""

NO_GATE = -1e9
"""Below every score: all records pass."""


@dataclass(frozen=True)
class Gate:
    """The score below which records are empty: for each fold as fitted on the others, and as fitted on all.

    Shape:
        scores float64 (N,).
    """

    scores: np.ndarray
    by_fold: dict[str, float]
    cut: float

    def cross_fitted(self, scored: Scored) -> Scored:
        """Return the records with probabilities of 0 where the gate sees nothing, each by the cut of its fold."""
        return self._applied(scored, np.array([self.by_fold[str(fold)] for fold in scored.folds]))

    def final(self, scored: Scored) -> Scored:
        """Return the same by the cut that was fitted on all."""
        return self._applied(scored, np.full(len(scored), self.cut))

    def _applied(self, scored: Scored, cuts: np.ndarray) -> Scored:
        def images(index: int) -> np.ndarray:
            found = scored.images(index)
            return np.zeros_like(found) if self.scores[index] < cuts[index] else found

        return replace(scored, images=images)


def fit_gate(scored: Scored, scores: np.ndarray) -> Gate:
    """Return the cuts that are best for global Dice, each with a threshold of its own, among 256.

    Shape:
        scores float64 (N,), of the records in their order.
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
    """Return what predicts masks, with probabilities of 0 where the gate sees nothing."""

    def predict(rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch, probabilities in masks(rows):
            scores = np.array([top_logit(image) for _, images in gate(batch) for image in images])
            probabilities[scores < cut] = 0
            yield batch, probabilities

    return predict


def _best(positive: np.ndarray, negative: np.ndarray) -> int:
    """Return the cut of the largest Dice; both int64 (cuts, levels), of records between one cut and the next."""
    kept = positive[::-1].cumsum(0)[::-1], negative[::-1].cumsum(0)[::-1]
    hits, wrong = (counts[:, ::-1].cumsum(1)[:, ::-1] for counts in kept)
    total = hits + wrong + positive.sum()
    dice = np.divide(2.0 * hits, total, out=np.zeros(total.shape), where=total > 0)
    return int(dice.max(1).argmax())
