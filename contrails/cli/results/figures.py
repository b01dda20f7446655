"""Printing the scores of an ensemble."""

import shlex
from collections.abc import Iterator
from typing import Any

from contrails.aggregate.ensemble import Ensemble
from contrails.cli.tables import Column, new_console, print_table
from contrails.progress import tell
from contrails.report.naming import confusion_cut, dice_by

_NO_INTERVAL = "no interval: it needs at least two groups"


def show_ensemble(ensemble: Ensemble) -> None:
    """Print the members, the decisions and the scores of an ensemble, and which records each score is of."""
    _show_members(ensemble)
    if ensemble.scores.get("decisions"):
        _show_decisions(ensemble.scores["decisions"])
    if "gate" in ensemble.scores:
        _show_stages(ensemble.scores["gate"])
    console = new_console()
    for run, scores in ensemble.scores["weights"].items():
        if len(scores) > 1:
            compared, name = ", ".join(f"{kind} {dice:.4f}" for kind, dice in scores.items()), _dice(ensemble)
            console.print(f"weights:    {compared} (mean validation {name} of {run}: the best kind was taken)")
    for line in _figures(ensemble):
        console.print(line, soft_wrap=True)
    console.print(f"folder:     {ensemble.path}", soft_wrap=True)


def warn_of_classifiers(ensemble: Ensemble) -> None:
    """Warn that a classifier makes no useful masks, before hours of prediction."""
    if ensemble.scored_by == "record":
        tell(
            f"warning: {ensemble.path} consists of classifiers (model.task = 'classify'), which say whether a record "
            "is positive, not where: each mask, or row of a submission, holds all pixels of its record or none; to "
            f"use it with segmenters: `contrails aggregate RUN --gate {shlex.quote(str(ensemble.path))}`"
        )


def _show_members(ensemble: Ensemble) -> None:
    total, rows = sum(member.weight for member in ensemble.members), []
    for member in ensemble.members:
        score = "unscored" if member.dice is None else f"{member.dice:.4f}"
        epochs = ", ".join(map(str, member.epochs))
        row = (member.run, member.fold, member.kind, epochs, score, f"{member.threshold:.4f}")
        rows.append([*row, f"{member.weight / total:.3f}"])
    partial = "" if ensemble.complete else f" (partial: {ensemble.folds})"
    columns = [
        Column("run", whole=True),
        Column("fold", right=True),
        Column("weights", 3, right=True),
        Column("epochs", 4, right=True),
        Column(f"validation {_dice(ensemble)}", right=True),
        Column("threshold", 2, right=True),
        Column("share", 1, right=True),
    ]
    print_table(columns, rows, f"Members{partial}")


def _show_decisions(decisions: list[dict[str, Any]]) -> None:
    kept, rows = {True: "yes", False: "no", None: ""}, []
    for row in decisions:
        value = "" if row["value"] is None else f"{row['value']:.4g}"
        numbers = (f"{row['dice']:.4f}", f"{row['gain']:+.4f}", f"{row['noise']:.4f}")
        rows.append([row["step"].replace("_", " "), value, *numbers, kept[row["kept"]]])
    columns = [Column(heading, right=True) for heading in ("step", "value", "Dice", "gain", "noise", "kept")]
    print_table(columns, rows, "Post-processing, out of fold, cross-fitted: kept if the gain is above its noise")


def _show_stages(row: dict[str, Any]) -> None:
    kept = "kept" if row["kept"] else "not kept"
    gain = f"gain {row['gain']:+.4f}, noise {row['noise']:.4f}: {kept}"
    of_gate = "the gate's own masks"
    if row.get("gate_scored_by") == "record":
        of_gate = f"the gate itself, by record ({', '.join(_of_records(row))})"
    stages = (
        ("these members alone", row["dice_without"]),
        (of_gate, row["dice_of_gate"]),
        (f"these members where the gate's logit is {row['value']:.4g} or more", row["dice"]),
    )
    rows = [[name, "" if dice is None else f"{dice:.4f}"] for name, dice in stages]
    title = f"Two stages, out of fold, cross-fitted, by threshold alone ({gain})"
    print_table([Column("stages"), Column("Dice", right=True)], rows, title)


def _figures(ensemble: Ensemble) -> Iterator[str]:
    scores = ensemble.scores
    name = f"{_dice(ensemble)}:".ljust(11)
    if "dice" in scores:
        alone = f"{scores['dice_cross_fitted']:.4f} by the threshold alone"
        yield f"{name} {scores['dice']:.4f} cross-fitted ({'; '.join([alone, *_of_dice(scores)])})"
    elif "dice_fitted_threshold" in scores:
        how = "one fold: with the threshold that is best on these records"
        yield f"{name} {scores['dice_fitted_threshold']:.4f} ({'; '.join([how, *_of_dice(scores)])})"
    if "confusion" in scores:
        yield f"            {', '.join(_of_records(scores))} ({confusion_cut(scores)})"
    if change := scores.get("precision"):
        yield (
            f"precision:  {change['name']} changes the {_dice(ensemble)} by {change['change']:+.5f}, from "
            f"{change['dice_fp32']:.5f} in fp32 (by the threshold alone)"
        )
    yield f"of:         {scores['records']}"
    if held_out := scores.get("held_out"):
        more, records = "; ".join([*_of_dice(held_out), *_of_records(held_out)]), held_out["num_records"]
        of = f"{records} records; {held_out['records']}"
        yield f"ensemble:   {_dice(ensemble)} {held_out['dice']:.4f} ({more}) on {of}"
    yield f"threshold:  {ensemble.threshold:.4f}{_interval(scores)}"
    if calibration := scores.get("calibration"):
        before, platt, free = (calibration[key] for key in ("before", "platt", "label_free"))
        errors = (before["calibration_error"], platt["calibration_error"])
        yield (
            "calibrated: error {:.5f}, {:.5f} after Platt scaling; ".format(*errors)
            + f"thresholds without labels: {free['expected_dice']:.4f} (expected Dice), {free['half_dice']:.4f} (F*/2)"
        )


def _dice(ensemble: Ensemble) -> str:
    """Return the name of the Dice score: that of a classifier counts records."""
    return dice_by(ensemble.scores.get("scored_by"))


def _of_records(scores: dict[str, Any]) -> Iterator[str]:
    """Yield further scores of a classifier: AUC, average precision, and the confusion matrix of records."""
    for key, name in (("auc", "AUC"), ("auc_pr", "average precision")):
        if key in scores:
            yield f"{name} {scores[key]:.4f}"
    if confusion := scores.get("confusion"):
        tp, fp, fn, tn = (confusion[key] for key in ("tp", "fp", "fn", "tn"))
        yield f"records: {tp} found, {fp} false, {fn} missed, {tn} rightly empty"


def _of_dice(scores: dict[str, Any]) -> Iterator[str]:
    """Yield the interval of a Dice score as text; nothing if the ensemble was written without one by an old version."""
    if "interval" in scores:
        found = scores["interval"]
        yield _NO_INTERVAL if found is None else "95% interval {:.4f} to {:.4f}".format(*found)


def _interval(scores: dict[str, Any]) -> str:
    if "threshold" not in scores.get("intervals", {}):
        return ""
    return " (95% interval {:.4f} to {:.4f})".format(*scores["intervals"]["threshold"])
