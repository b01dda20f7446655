"""Fitting threshold and post-processing of an ensemble on labelled records, and scoring the result.

Every score says which records it is of, and whether anything was fitted on them.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from contrails.aggregate.decide.calibrate import Calibration, fit, label_free, reliability
from contrails.aggregate.decide.gate import fit_gate
from contrails.aggregate.decide.judged import judge
from contrails.aggregate.decide.postprocess import Decided, Step, compare, decide
from contrails.aggregate.decide.threshold import (
    confusion_of_folds,
    cross_fitted,
    cross_fitted_dice,
    dice_interval,
    threshold_interval,
)
from contrails.aggregate.members.merge import fixed_threshold
from contrails.aggregate.members.scored import Scored, Tally, tally
from contrails.aggregate.scores.outoffold import OutOfFold
from contrails.metrics import average_precision, roc_auc


@dataclass(frozen=True)
class Fit:
    """The fitted values and the scores; `weights` are those of the runs, in the order of the series."""

    threshold: float
    steps: tuple[Step, ...]
    weights: list[float]
    scores: dict[str, Any]
    gate_below: float | None = None


def fit_out_of_fold(found: OutOfFold, rule: str, *, fit_weights: bool, gate_scores: np.ndarray | None = None) -> Fit:
    """Fit on out-of-fold predictions merged by a rule; the reported scores are cross-fitted by fold.

    Fitted in this order: run weights, gate (if it gains more than its noise), threshold, post-processing.

    Args:
        found: the predictions.
        rule: how runs are merged.
        fit_weights: whether to fit the weights of the runs too.
        gate_scores: the gate's score of each record, float64 (N,).
    """
    by_fold, weights = found.equal_weights(), [1 / len(found.series)] * len(found.series)
    if fit_weights:
        by_fold, weights = found.fitted_weights(rule)
    judged = found.scored(rule, by_fold, cross_fitted=True)
    counted = tally(judged)
    thresholds = _thresholds(found, rule, by_fold, counted)
    gate, gate_row = None, None
    if gate_scores is not None:
        gate = fit_gate(judged, gate_scores)
        behind = gate.cross_fitted(judged)
        counted_behind = tally(behind)
        thresholds_behind = _thresholds(found, rule, by_fold, counted_behind)
        gate_row = compare("gate", gate.cut, (judged, thresholds), (behind, thresholds_behind))
        gate_row["dice_without"] = cross_fitted_dice(counted, thresholds)
        if gate_row["kept"]:
            judged, counted, thresholds = behind, counted_behind, thresholds_behind
        else:
            gate = None
    fixed, final = _fixed(found, rule, weights, None), counted
    if fit_weights or gate is not None:
        scored = found.scored(rule, dict.fromkeys(by_fold, weights), cross_fitted=False)
        final = tally(scored if gate is None else gate.final(scored))
    threshold = final.pooled.best()[1] if fixed is None else fixed
    several = len(counted.by_fold) > 1
    thresholds = thresholds if several else dict.fromkeys(counted.by_fold, threshold)
    if several and found.by == "pixel":
        decided = decide(judged, thresholds)
    else:
        decided = Decided((), [], judge(judged, thresholds).counts)
    scores: dict[str, Any] = {
        "records": _label(found, several=several),
        "num_records": len(judged),
        "dice_by_fold": {fold: histogram.best()[0] for fold, histogram in counted.by_fold.items()},
        "threshold_by_fold": {fold: histogram.best()[1] for fold, histogram in counted.by_fold.items()},
        "dice_fitted_threshold": final.pooled.dice(threshold),
        "interval": dice_interval(judged.groups, decided.counts, "out of fold"),
        "intervals": {} if fixed is not None else threshold_interval(counted),
        "decisions": decided.rows,
    }
    if rule != "vote":  # fractions of votes are not probabilities
        scores["calibration"] = _calibration(counted)
    if several:
        scores["dice_cross_fitted"] = cross_fitted_dice(counted, thresholds)
        kept = (row["dice"] for row in reversed(decided.rows) if row["kept"])
        scores["dice"] = next(kept, scores["dice_cross_fitted"])
    if found.by == "record":
        scores |= _of_records(counted, thresholds)
    if gate_row is not None:
        scores["gate"] = gate_row
    return Fit(threshold, decided.steps, weights, scores, None if gate is None else gate.cut)


def change_of_dice(fit: Fit, exact: Fit) -> dict[str, Any]:
    """Return the Dice of predictions in a lower precision and in fp32, by threshold alone, and their difference."""
    key = "dice_cross_fitted" if "dice_cross_fitted" in fit.scores else "dice_fitted_threshold"
    dice, dice_fp32 = fit.scores[key], exact.scores[key]
    return {"dice": dice, "dice_fp32": dice_fp32, "change": dice - dice_fp32}


def _of_records(counted: Tally, thresholds: dict[str, float]) -> dict[str, Any]:
    """Return further scores of a classifier: AUC, average precision, and the confusion matrix of records."""
    pixels = confusion_of_folds(counted, thresholds)
    false, missed = pixels.predicted - pixels.hits, pixels.actual - pixels.hits
    confusion = {"tp": pixels.hits, "fp": false, "fn": missed, "tn": pixels.pixels - pixels.hits - false - missed}
    ranked = {"auc": roc_auc(counted.pooled), "auc_pr": average_precision(counted.pooled)}
    known = {name: value for name, value in ranked.items() if not math.isnan(value)}  # JSON has no NaN
    return {"scored_by": "record", "confusion": confusion} | known


def held_out_scores(scored: Scored, threshold: float, steps: tuple[Step, ...]) -> dict[str, Any]:
    """Return the Dice of the whole ensemble on held-out records, with a 95% interval by a bootstrap over groups.

    With fewer than two groups the interval is None.
    """
    counts = judge(scored, dict.fromkeys(map(str, scored.folds), threshold), steps).counts
    hits, predicted, actual = counts.sum(1)
    return {
        "records": "held out: nothing was fitted on them",
        "num_records": len(scored),
        "dice": float(2 * hits / (predicted + actual)) if predicted + actual else 0.0,
        "interval": dice_interval(scored.groups, counts, "held out"),
    } | (_of_records(tally(scored), dict.fromkeys(map(str, scored.folds), threshold)) if scored.by == "record" else {})


def _thresholds(found: OutOfFold, rule: str, weights: dict[str, list[float]], counted: Tally) -> dict[str, float]:
    """Return the threshold of each fold's records, which was not fitted on them."""
    brings = {fold: _fixed(found, rule, weights[fold], fold) for fold in counted.by_fold}
    return {fold: known for fold, known in brings.items() if known is not None} or cross_fitted(counted)


def _fixed(found: OutOfFold, rule: str, weights: list[float], fold: str | None) -> float | None:
    return fixed_threshold(rule, [series.threshold(fold) for series in found.series], weights)


def _label(found: OutOfFold, *, several: bool) -> str:
    what = "single members" if len(found.series) == 1 else f"one member of each of {len(found.series)} runs, merged"
    how = "" if several else "; one fold: the threshold was fitted on these records"
    by = "" if found.by == "pixel" else "; scored by record"
    return f"out-of-fold; {what}; epochs selected on these records{how}{by}"


def _calibration(counted: Tally) -> dict[str, Any]:
    """Return temperature and Platt scaling with their reliability, cross-fitted by fold, and that without scaling."""
    pooled = counted.pooled
    result: dict[str, Any] = {"before": reliability(pooled, Calibration())}
    for name, with_bias in (("temperature", False), ("platt", True)):
        final = fit(pooled, with_bias=with_bias)
        after = [
            (reliability(histogram, fit(counted.others(fold), with_bias=with_bias)), _pixels(counted, fold))
            for fold, histogram in counted.by_fold.items()
        ]
        total = sum(pixels for _, pixels in after)
        result[name] = {"slope": final.slope, "bias": final.bias} | {
            key: sum(each[key] * pixels for each, pixels in after) / max(total, 1)
            for key in ("cross_entropy", "calibration_error")
        }
    result["label_free"] = label_free(pooled.positive + pooled.negative, fit(pooled, with_bias=True))
    return result


def _pixels(counted: Tally, fold: str) -> int:
    histogram = counted.by_fold[fold]
    return int(histogram.positive.sum() + histogram.negative.sum())
