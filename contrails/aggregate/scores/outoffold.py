"""Out-of-fold predictions: every member predicts exactly the records that its fold validated on.

Within a run, each record has one such prediction. With several runs on one file list it has one per run; these are
merged like the ensemble, so that everything is fitted on merged probabilities. There is one file per member, so that
folds that finish later, and parallel jobs, can add theirs.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from contrails.aggregate.ensemble import Ensemble
from contrails.aggregate.members.members import Finished, Weights
from contrails.aggregate.members.merge import merge
from contrails.aggregate.members.predict import load_predictor
from contrails.aggregate.members.prediction_files import Wanted, complete, read_predictions
from contrails.aggregate.members.scored import By, Scored, of_record
from contrails.aggregate.members.views import View
from contrails.aggregate.options import made_by, noted
from contrails.aggregate.scores.weighting import MAX_PIXELS, fit_weights
from contrails.dataset.store import Dataset
from contrails.errors import DataError, RunError
from contrails.files import sha256
from contrails.metrics import NUM_BINS

Predicted = tuple[Finished, Weights, np.ndarray]
"""A fold, the weights of its member, and the member's probabilities of the fold's validation records."""


def predict_out_of_fold(
    fold: Finished,
    weights: Weights,
    folder: Path,
    views: Sequence[View],
    pad: int,
    precision: str,
    device: torch.device,
) -> np.ndarray:
    """Return a member's probabilities of its fold's validation records, uint16 (N, H, W), memory-mapped; can resume."""
    dataset, rows = fold.dataset, fold.validation
    height, width = dataset.votes.shape[1:]
    about = {"weights": sha256(weights.path), "dataset": dataset.fingerprint, "pad": pad, "device": device.type}
    wanted = Wanted(
        rows=rows,
        record_ids=tuple(dataset.record_ids[row] for row in rows),
        shape=(height, width),
        member=fold.name,
        about=about | {"views": [vars(view) for view in views]} | noted(precision),
    )
    predictor = load_predictor([weights.path], dataset, device, views=views, pad=pad, precision=precision)
    return complete(folder / f"{fold.name}.h5", wanted, predictor, f"out of fold: {fold.name}")


@dataclass(frozen=True)
class Series:
    """Out-of-fold predictions of one run: probabilities and the member's own threshold, by fold."""

    run: str
    probabilities: dict[str, np.ndarray]
    thresholds: dict[str, float]

    def threshold(self, fold: str | None) -> float:
        """Return the mean of the members' thresholds, without that of the fold whose records are scored."""
        chosen = [value for key, value in self.thresholds.items() if key != fold]
        return float(np.mean(chosen or list(self.thresholds.values())))


@dataclass(frozen=True)
class OutOfFold:
    """The series of all runs, for the records that every run has predicted.

    Shape:
        rows int64 (N,) and folds str (N,), fold by fold.
    """

    series: tuple[Series, ...]
    first: Finished
    rows: np.ndarray
    folds: np.ndarray

    @property
    def by(self) -> By:
        return self.first.scored_by

    def scored(self, rule: str, weights: dict[str, list[float]], *, cross_fitted: bool) -> Scored:
        """Return the records with merged probabilities.

        Args:
            rule: how runs are merged.
            weights: weights of the runs, by the fold of the record.
            cross_fitted: whether to leave out the threshold of the member of the record's own fold.
        """
        starts = {fold: int(np.argmax(self.folds == fold)) for fold in np.unique(self.folds)}

        def images(index: int) -> np.ndarray:
            fold = str(self.folds[index])
            found = [series.probabilities[fold][index - starts[fold]] for series in self.series]
            if len(found) == 1 and rule != "vote":
                alone: np.ndarray = found[0]
                return alone
            probs = torch.from_numpy(np.stack(found).astype(np.float32)) / (NUM_BINS - 1)
            thresholds = [series.threshold(fold if cross_fitted else None) for series in self.series]
            merged: np.ndarray = merge(rule, probs, weights[fold], thresholds).numpy().astype(np.uint16)
            return merged

        return Scored(self.first.dataset, self.rows, self.folds, images, self.by)

    def equal_weights(self) -> dict[str, list[float]]:
        return {str(fold): [1 / len(self.series)] * len(self.series) for fold in np.unique(self.folds)}

    def fitted_weights(self, rule: str) -> tuple[dict[str, list[float]], list[float]]:
        """Return the weights of the runs: for each fold as fitted on the other folds, and as fitted on all."""
        probs, hard, folds = self._sample()
        thresholds = [series.threshold(None) for series in self.series]
        by_fold = {}
        for fold in map(str, np.unique(self.folds)):
            others = folds != fold
            chosen = others if others.any() else ~others
            by_fold[fold] = fit_weights(rule, probs[:, torch.from_numpy(chosen)], hard[chosen], thresholds)
        return by_fold, fit_weights(rule, probs, hard, thresholds)

    def _sample(self) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        """Return probabilities float32 (runs, pixels), truth and fold of every n-th pixel of every record.

        By record, each record is one pixel.
        """
        scored = self.scored("mean", self.equal_weights(), cross_fitted=False)
        every = 1 if self.by == "record" else -(-len(self.rows) * self.first.dataset.votes[0].size // MAX_PIXELS)
        probs: list[np.ndarray] = []
        hard: list[np.ndarray] = []
        folds: list[np.ndarray] = []
        for fold in np.unique(self.folds):
            stacked = [series.probabilities[str(fold)] for series in self.series]
            for index, number in enumerate(np.flatnonzero(self.folds == fold)):
                truth, valid = scored.truth(int(number))
                counted = np.ones(truth.shape, bool) if valid is None else valid
                images = [array[index] if self.by == "pixel" else of_record(array[index]) for array in stacked]
                chosen = counted.ravel()[::every]
                probs.append(np.stack([image.ravel()[::every][chosen] for image in images]))
                hard.append(truth.ravel()[::every][chosen])
                folds.append(np.full(int(chosen.sum()), fold))
        merged = torch.from_numpy(np.concatenate(probs, axis=1).astype(np.float32)) / (NUM_BINS - 1)
        return merged, np.concatenate(hard), np.concatenate(folds)


class StoredProbabilities(Mapping[str, np.ndarray]):
    """An ensemble's out-of-fold probabilities by record, uint16 (H, W); the mean over its runs.

    Raises:
        DataError: the ensemble was made with another dataset, or has no out-of-fold predictions.
    """

    def __init__(self, ensemble: Ensemble, dataset: Dataset) -> None:
        if ensemble.request["dataset"]["fingerprint"] != dataset.fingerprint:
            raise DataError(
                f"{ensemble.path}: expected an ensemble of the dataset {dataset.path}, found one of "
                f"{ensemble.request['dataset']['path']}; give that dataset, or aggregate a run on this one"
            )
        self._images = dict[str, list[np.ndarray]]()
        names = {f"{member.run}-fold{member.fold}.h5" for member in ensemble.members}
        for path in sorted((ensemble.path / "out_of_fold").glob("*.h5")):
            if path.name in names:
                for record_id, image in zip(*read_predictions(path), strict=True):
                    self._images.setdefault(record_id, []).append(image)
        if not self._images:
            raise DataError(
                f"{ensemble.path} has no out-of-fold predictions: no member has validation records, or the folder was "
                f"moved without them; make it again with {made_by(ensemble.path)}"
            )

    def __getitem__(self, record_id: str) -> np.ndarray:
        mean: np.ndarray = np.mean(self._images[record_id], axis=0).round().astype(np.uint16)
        return mean

    def __iter__(self) -> Iterator[str]:
        return iter(self._images)

    def __len__(self) -> int:
        return len(self._images)


def join_series(folds: Sequence[Predicted]) -> OutOfFold | None:
    """Join the out-of-fold predictions of members; None if there are none.

    Raises:
        RunError: no fold is finished in all runs, or runs validated a fold on different records.
    """
    by_run: dict[str, dict[str, Predicted]] = {}
    for entry in folds:
        by_run.setdefault(entry[0].fold.run.name, {})[entry[0].fold.key] = entry
    if not by_run:
        return None
    common = sorted(set.intersection(*(set(run) for run in by_run.values())), key=int)
    if not common:
        raise RunError(
            f"no fold is finished in all of {', '.join(by_run)}: train the same fold in all, or leave a run out"
        )
    first = next(iter(by_run.values()))
    for name, run in by_run.items():
        if wrong := [k for k in common if not np.array_equal(run[k][0].validation, first[k][0].validation)]:
            raise RunError(f"{name} validated fold {wrong[0]} on other records than the other runs; leave it out")
    series = []
    for name, run in sorted(by_run.items()):
        probabilities = {k: run[k][2] for k in common}
        thresholds = {k: float(run[k][1].threshold or 0.5) for k in common}
        series.append(Series(name, probabilities, thresholds))
    rows = np.concatenate([first[k][0].validation for k in common])
    keys = np.concatenate([np.full(len(first[k][0].validation), k) for k in common])
    return OutOfFold(tuple(series), first[common[0]][0], rows, keys)
