"""Comparing two runs: a paired bootstrap over groups, on out-of-fold predictions.

Both are scored on the records that both have predicted, each fold cut at the threshold fitted on the run's other folds.
Groups (one location within a time window) are drawn with replacement, the same for both runs, so that the difficulty of
a record affects both equally.
"""

from dataclasses import dataclass

import numpy as np

from contrails.aggregate.decide.judged import Judged, judge
from contrails.aggregate.decide.threshold import cross_fitted
from contrails.aggregate.members.scored import By, Scored, redraws, tally
from contrails.errors import DataError

_DRAWS = 2000
_INTERVAL = (2.5, 97.5)


@dataclass(frozen=True)
class Paired:
    """Global Dice of both runs on `num_records`, the difference second - first with its 95% interval, and the fraction
    of the draws in which the second is better; `scored_by` is what the Dice counts."""

    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    second_better: float
    num_records: int
    num_groups: int
    scored_by: By = "pixel"

    @property
    def is_real(self) -> bool:
        """Whether the interval excludes zero."""
        return not self.interval[0] <= 0 <= self.interval[1]


def compare_paired(first: Scored, second: Scored) -> Paired:
    """Compare two runs.

    Raises:
        DataError: they share no records, have different labels, or only one of them is scored by record.
    """
    if first.by != second.by:
        raise DataError(
            f"the first is scored by {first.by} and the second by {second.by}; compare classifiers with classifiers, "
            "and segmenters with segmenters"
        )
    ids = [[scored.dataset.record_ids[row] for row in scored.rows] for scored in (first, second)]
    places = [{record_id: index for index, record_id in enumerate(each)} for each in ids]
    common = [record_id for record_id in ids[0] if record_id in places[1]]
    if not common:
        raise DataError("the runs predicted no record in common out of fold; compare runs on one dataset")
    chosen = [np.array([place[record_id] for record_id in common]) for place in places]
    counts = [_counts(scored, indices) for scored, indices in zip((first, second), chosen, strict=True)]
    differing = np.flatnonzero(counts[0][2] != counts[1][2])
    if len(differing):
        raise DataError(
            f"the runs have different labels for {len(differing)} records, such as {common[differing[0]]}; "
            "compare runs on one dataset"
        )
    groups = np.unique(first.groups[chosen[0]], return_inverse=True)[1]
    sums = np.stack([[np.bincount(groups, row) for row in each[:2]] for each in counts])
    weights = np.stack(list(redraws(int(groups.max()) + 1, _DRAWS, "paired")))
    drawn = _dice(sums @ weights.T)
    dice = _dice(sums.sum(-1))
    low, high = np.percentile(drawn[1] - drawn[0], _INTERVAL)
    return Paired(
        first=float(dice[0]),
        second=float(dice[1]),
        difference=float(dice[1] - dice[0]),
        interval=(float(low), float(high)),
        second_better=float((drawn[1] > drawn[0]).mean()),
        num_records=len(common),
        num_groups=len(sums[0, 0]),
        scored_by=first.by,
    )


def _counts(scored: Scored, chosen: np.ndarray) -> np.ndarray:
    """Return 2 TP, predicted plus actual positives, and actual positives of records, int64 (3, N)."""
    judged: Judged = judge(scored, cross_fitted(tally(scored)))
    actual = judged.hits + judged.missed
    counts: np.ndarray = np.stack([2 * judged.hits, 2 * judged.hits + judged.false + judged.missed, actual])[:, chosen]
    return counts


def _dice(sums: np.ndarray) -> np.ndarray:
    """Return the Dice of (runs, 2, ...) sums; 0 where the denominator is 0."""
    hits, total = sums[:, 0].astype(np.float64), sums[:, 1]
    dice: np.ndarray = np.divide(hits, total, out=np.zeros_like(hits), where=total > 0)
    return dice
