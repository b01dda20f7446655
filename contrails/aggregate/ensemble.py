"""Ensembles: a folder with `ensemble.json` and its members' weights, all that prediction needs.

Made from a run's finished folds. The threshold is fitted on out-of-fold predictions: each member predicts the
records that its fold validated on. The reported score is cross-fitted: fold k is scored at the threshold of the others.
"""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from contrails.config import Recipe, parse
from contrails.data.batches import Source, source_of
from contrails.data.composites import Composite
from contrails.data.filelists import read_filelist
from contrails.data.store import Dataset, open_dataset
from contrails.errors import DataError, RunError
from contrails.files import atomic_path, read_json, sha256, to_json, write_atomic
from contrails.metrics import Histogram
from contrails.models.build import Segmenter, build_model
from contrails.models.weights import load_weights
from contrails.progress import bar
from contrails.runs import ALL, Fold, Run
from contrails.train.evaluate import evaluate
from contrails.train.fold import read_run_config, training_rows

FORMAT = "contrails-ensemble"
VERSION = 1


@dataclass(frozen=True)
class Member:
    """One trained fold: a weights file in the ensemble's folder, and where it comes from."""

    file: str
    sha256: str
    run: str
    fold: str
    epoch: int
    dice: float | None
    """Global Dice on the fold's own validation records at its own best threshold; None for a fold without any."""


@dataclass(frozen=True)
class Ensemble:
    """What is merged and how: the mean of the members' probabilities, positive from `threshold` on."""

    path: Path
    members: tuple[Member, ...]
    threshold: float
    scores: dict[str, Any]
    complete: bool
    """Whether every fold of the file list is there."""


def read_ensemble(path: Path) -> Ensemble:
    """Read an ensemble's folder.

    Raises:
        DataError: it holds no ensemble of this version, or a member's file is not the one that was merged.
    """
    content = read_json(path / "ensemble.json")
    if content is None or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise DataError(
            f"expected an ensemble of version {VERSION} in {path} (ensemble.json), found none; "
            "make one with `contrails aggregate RUN`"
        )
    members = tuple(Member(**member) for member in content["members"])
    for member in members:
        if not (path / member.file).is_file() or sha256(path / member.file) != member.sha256:
            raise DataError(f"{path / member.file} is missing or damaged; run `contrails aggregate` again")
    return Ensemble(path, members, content["threshold"], content["scores"], content["complete"])


def load_member(ensemble: Ensemble, member: Member, dataset: Dataset, device: torch.device) -> tuple[Segmenter, Source]:
    """Return a member's network with its weights, and the dataset as that network sees it."""
    return _load(ensemble.path / member.file, dataset, device)


def make_ensemble(run: Run, name: str, device: torch.device) -> Ensemble:
    """Merge the finished folds of a run into `aggregate/<name>` and fit the threshold.

    An ensemble of the same members that is there already is returned as it is.

    Raises:
        RunError: no fold is finished.
    """
    finished = [(fold, done) for fold in run.folds() if (done := fold.read_done()) is not None]
    if not finished:
        raise RunError(f"no fold of {run.name} is finished yet; look with `contrails status {run.name}`")
    members = [_member(run, fold, done) for fold, done in finished]
    path = run.aggregate(name)
    if (path / "ensemble.json").exists():
        existing = read_ensemble(path)
        if existing.members == tuple(members):
            return existing
    for (fold, done), member in zip(finished, members, strict=True):
        with atomic_path(path / member.file) as temporary:
            shutil.copyfile(fold.weights / _chosen(done)["file"], temporary)
    histograms = _out_of_fold(run, path, members, device)
    num_folds = read_run_config(run).data.num_folds
    threshold, scores = _fit_threshold(histograms)
    content = {
        "format": FORMAT,
        "version": VERSION,
        "merge": "mean of probabilities",
        "members": [asdict(member) for member in members],
        "threshold": threshold,
        "scores": scores,
        "complete": len([member for member in members if member.fold != ALL]) == num_folds,
    }
    write_atomic(path / "ensemble.json", to_json(content))
    return read_ensemble(path)


def _member(run: Run, fold: Fold, done: dict[str, Any]) -> Member:
    chosen = _chosen(done)
    path, expected = fold.weights / chosen["file"], chosen["sha256"]
    if not path.is_file() or sha256(path) != expected:
        raise DataError(
            f"{path} is missing or is not the file that {fold.done} names; restore it, or train the fold again"
        )
    return Member(f"fold{fold.key}.safetensors", expected, run.name, fold.key, chosen["epoch"], done["best_dice"])


def _chosen(done: dict[str, Any]) -> dict[str, Any]:
    """Return file, sha256 and epoch of the best weights; the final ones of a fold without a score."""
    weights: dict[str, dict[str, Any]] = done["weights"]
    return weights.get("best", weights["final"])


def _load(path: Path, dataset: Dataset, device: torch.device) -> tuple[Segmenter, Source]:
    tensors, about = load_weights(path)
    recipe = parse(Recipe, about["recipe"], str(path))
    model = build_model(recipe, about["num_channels"])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(f"{path} does not fit the model of its own recipe: {error}; it was changed") from error
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point()):
        raise DataError(f"{path} holds weights that are not finite; leave this member out, or train it again")
    return model.eval().to(device), source_of(dataset, recipe, Composite.from_dict(about["composite"]), device)


def _out_of_fold(run: Run, path: Path, members: list[Member], device: torch.device) -> dict[str, Histogram]:
    """Return the histogram of each member on its own fold's validation records."""
    recipe = read_run_config(run).recipe
    dataset, filelist = open_dataset(recipe.data.dataset), read_filelist(recipe.data.filelist)
    scored = [(member, training_rows(dataset, filelist, member.fold, recipe)[1]) for member in members]
    histograms = {}
    with bar("out-of-fold predictions", sum(len(rows) for _, rows in scored)) as advance:
        for member, rows in scored:
            if len(rows):
                model, source = _load(path / member.file, dataset, device)
                histograms[member.fold] = evaluate(model, source, rows, recipe.train.batch_size).histogram
                advance(len(rows))
    return histograms


def _fit_threshold(histograms: dict[str, Histogram]) -> tuple[float, dict[str, Any]]:
    """Return the threshold of the pooled optimum, and the scores with what they mean."""
    if not histograms:
        return 0.5, {"records": "none: no member has validation records, the threshold is a guess"}
    pooled = sum(histograms.values(), Histogram.empty())
    best_dice, threshold = pooled.best()
    scores: dict[str, Any] = {
        "records": "out-of-fold; single members; epochs selected on these records",
        "dice_by_fold": {fold: histogram.best()[0] for fold, histogram in histograms.items()},
        "dice_fitted_threshold": best_dice,
    }
    if len(histograms) > 1:
        scores["dice_cross_fitted"] = _cross_fitted_dice(histograms)
    return threshold, scores


def _cross_fitted_dice(histograms: dict[str, Histogram]) -> float:
    """Return the global Dice where each fold is cut at the threshold that is best for the other folds."""
    hits = total = 0
    for fold, histogram in histograms.items():
        others = sum((h for other, h in histograms.items() if other != fold), Histogram.empty())
        first = round(others.best()[1] * (len(histogram.positive) - 1))
        true_positive = int(histogram.positive[first:].sum())
        hits += 2 * true_positive
        total += true_positive + int(histogram.negative[first:].sum()) + int(histogram.positive.sum())
    return hits / total if total else 0.0
