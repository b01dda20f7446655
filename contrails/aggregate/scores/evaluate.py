"""Scores of an ensemble on labelled records: over all of them, per record, and by group, time and size.

They count pixels; those of a classifier count records.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import torch

from contrails.aggregate.apply import predictor
from contrails.aggregate.decide.postprocess import apply
from contrails.aggregate.ensemble import Ensemble
from contrails.aggregate.members.scored import By, any_of, of_record
from contrails.dataset.store import IGNORE, Dataset
from contrails.errors import DataError
from contrails.folds.filelists import HELD_OUT, FileList
from contrails.metrics import NUM_BINS, Histogram, average_precision, roc_auc
from contrails.progress import bar
from contrails.sources.tiles import scene_of

_SIZES = (0, 1, 100, 1000)
_SIZE_NAMES = ("none", "1 to 99 px", "100 to 999 px", "1000 px or more")
"""Classes of size, by the number of positive pixels in the label."""


@dataclass(frozen=True)
class Evaluation:
    """`table` has a row per record: record_id, group, time, tp, fp, fn, tn, dice, mean probability, positive pixels."""

    table: pd.DataFrame
    histogram: Histogram
    scored_by: By = "pixel"

    def summary(self) -> dict[str, Any]:
        """Return counts and global scores of the post-processed masks, and AUC-PR; for a classifier also AUC."""
        ranked = {"auc_pr": average_precision(self.histogram)}
        ranked |= {"auc": roc_auc(self.histogram)} if self.scored_by == "record" else {}
        return scores(self.table) | ranked | {"num_records": len(self.table), "scored_by": self.scored_by}

    def by(self, what: str) -> pd.DataFrame:
        """Return the scores over records that share a `group`, an hour of the day (`time`) or a `size` of the label."""
        keys: dict[str, Any] = {
            "group": self.table["group"],
            "time": self.table["time"].str[11:13].replace("", "unknown"),
            "size": pd.cut(self.table["positive_px"], [*_SIZES, np.inf], right=False, labels=_SIZE_NAMES),
        }
        groups = self.table.groupby(keys[what], observed=True)
        return pd.DataFrame({key: scores(part) | {"records": len(part)} for key, part in groups}).T


def evaluate_ensemble(ensemble: Ensemble, dataset: Dataset, rows: np.ndarray, device: torch.device) -> Evaluation:
    """Predict labelled records and compare them with their labels; probabilities are not kept in memory.

    Raises:
        DataError: no record has a label.
    """
    rows = rows[dataset.annotators[rows] > 0]
    if not len(rows):
        raise DataError(f"{dataset.path}: expected labelled records, found none; evaluate on a dataset with masks")
    positive, negative, found = np.zeros(NUM_BINS, np.int64), np.zeros(NUM_BINS, np.int64), []
    by = ensemble.scored_by
    with bar("evaluation", len(rows)) as advance:
        for part, probabilities in predictor(ensemble, dataset, device)(rows):
            for row, image in zip(part, probabilities, strict=True):
                hard, valid = dataset.hard(row), dataset.votes[row] != IGNORE
                about = _about(dataset, row) | {"positive_px": int(hard.sum())}
                if by == "record":
                    image, hard, valid = of_record(image), any_of(hard), any_of(valid)
                positive += np.bincount(image[hard], minlength=NUM_BINS)
                negative += np.bincount(image[valid & ~hard], minlength=NUM_BINS)
                mask = apply(image, ensemble.threshold, ensemble.steps if by == "pixel" else ())
                found.append(about | _pixels(mask, hard, valid) | {"mean_probability": _mean(image)})
            advance(len(part))
    table = pd.DataFrame(found)
    table["dice"] = 2 * table["tp"] / (2 * table["tp"] + table["fp"] + table["fn"])  # NaN if all three are 0
    return Evaluation(table, Histogram(positive, negative), by)


def seen_in_training(dataset: Dataset, filelist: FileList) -> np.ndarray:
    """Return the rows of records that a fold trained on or was selected by, int64; for a tile, its whole scene."""
    used = {name for name, fold in zip(filelist.record_ids, filelist.folds, strict=True) if fold != HELD_OUT}
    scenes = {scene_of(name) for name in used} if dataset.placements else set()
    names = enumerate(dataset.record_ids)
    return np.array([row for row, name in names if name in used or (scenes and dataset.whole(row) in scenes)], int)


def scores(table: pd.DataFrame) -> dict[str, Any]:
    """Return counts, and Dice, IoU, precision and recall over all of them; NaN where the denominator is 0."""
    tp, fp, fn, tn = (int(table[name].sum()) for name in ("tp", "fp", "fn", "tn"))
    return {
        "tp": tp, "fp": fp, "fn": fn, "tn": tn,
        "dice": _ratio(2 * tp, 2 * tp + fp + fn),
        "iou": _ratio(tp, tp + fp + fn),
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, tp + fn),
    }  # fmt: skip


def _about(dataset: Dataset, row: int) -> dict[str, Any]:
    seconds = dataset.timestamps[row]
    time = "" if np.isnan(seconds) else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%MZ")
    return {"record_id": dataset.record_ids[row], "group": dataset.groups[row], "time": time}


def _pixels(mask: np.ndarray, hard: np.ndarray, valid: np.ndarray) -> dict[str, int]:
    mask = mask & valid
    tp, predicted, actual = (int(part.sum()) for part in (mask & hard, mask, hard))
    return {"tp": tp, "fp": predicted - tp, "fn": actual - tp, "tn": int(valid.sum()) - predicted - actual + tp}


def _mean(image: np.ndarray) -> float:
    return float(image.mean()) / (NUM_BINS - 1)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
