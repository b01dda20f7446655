"""Finished folds, and the weights of each that become a member of an ensemble.

A fold offers the files that its `done.json` names (final, best, averages made in training) and the epochs that it kept.
From the epochs, averages and greedy soups are made, with batch-norm statistics of the fold's own training records, and
scored on its own validation records. The files that were made are kept with their lineage and reused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contrails.aggregate.members.average import Tensors, average_weights, greedy_soup, is_finite, refresh_batch_norm
from contrails.aggregate.members.scored import By
from contrails.aggregate.options import AUTO, AVERAGE, SOUP
from contrails.dataset.store import Dataset, open_dataset
from contrails.errors import DataError, RecipeError, RunError, choices
from contrails.files import code_digest, sha256
from contrails.folds.filelists import FileList, read_filelist
from contrails.inputs.batches import Source, source_of
from contrails.inputs.composites import Composite
from contrails.models.about import read_about
from contrails.models.build import build_model
from contrails.models.segmenter import Segmenter
from contrails.models.weights import load_weights, save_weights
from contrails.recipe.migrations import migrated
from contrails.recipe.reading import parse
from contrails.recipe.recipe import Recipe
from contrails.runs.config import RunConfig
from contrails.runs.folder import ALL, Fold, Run
from contrails.train.evaluate import evaluate
from contrails.train.fold_data import training_rows
from contrails.train.saved.finite import NotFiniteError

_TRIED = ("best5", "last5")
"""Averages that `auto` compares with the files of the folds."""


@dataclass(frozen=True)
class Finished:
    """A finished fold: its result, and the rows of the dataset that it trained and validated on."""

    fold: Fold
    done: dict[str, Any]
    recipe: Recipe
    dataset: Dataset
    training: np.ndarray
    validation: np.ndarray

    @property
    def name(self) -> str:
        return f"{self.fold.run.name}-fold{self.fold.key}"

    @property
    def scored_by(self) -> By:
        """What its scores count: pixels, or records if it is a classifier."""
        return "record" if self.recipe.model.task == "classify" else "pixel"


@dataclass(frozen=True)
class Weights:
    """A weights file, its origin, and its score on its fold's validation records, if there are any."""

    path: Path
    kind: str
    epochs: tuple[int, ...]
    dice: float | None
    threshold: float | None
    sources: tuple[str, ...]
    """SHA-256 of the files that it was made from."""


def finished_folds(run: Run, *, allow: bool) -> list[Finished]:
    """Return the finished folds of a run.

    Raises:
        RunError: none is finished, or recipe or code differ from those of the run (unless `allow`).
        DataError: the dataset or the file list differ from those of the run (unless `allow`).
    """
    found = [(fold, done) for fold in run.folds() if (done := fold.read_done()) is not None]
    if not found:
        raise RunError(f"expected a finished fold in {run.name}, found none; check with `contrails status {run.typed}`")
    config = run.read_config()
    dataset, filelist = open_dataset(config.recipe.data.dataset), read_filelist(config.recipe.data.filelist)
    if not allow:
        _require_unchanged(run, config, dataset)
    return [_finished(fold, done, config, dataset, filelist, allow=allow) for fold, done in found]


def choose_weights(
    folds: Sequence[Finished], kind: str, folder: Path, device: torch.device, tick: Callable[[], None]
) -> tuple[list[Weights], dict[str, float]]:
    """Return the weights of each fold of one run, and the mean validation Dice of each kind that was compared.

    `auto` takes the kind with the best mean: one choice for the run, made on the folds' validation records.

    Raises:
        RecipeError: a fold lacks this kind.
    """
    kinds = _comparable(folds) if kind == AUTO else [kind]
    made = {each: [_make(fold, each, folder, device, tick) for fold in folds] for each in kinds}
    scores = {}
    for each, weights in made.items():
        if scored := [one.dice for one in weights if one.dice is not None]:
            scores[each] = float(np.mean(scored))
    return made[max(scores, key=lambda each: scores[each]) if scores else kinds[0]], scores


def num_made(folds: Sequence[Finished], kind: str) -> int:
    """Return how many files `choose_weights` makes or scores, for the progress bar."""
    return len(folds) * len(_comparable(folds) if kind == AUTO else [kind])


def load_member(path: Path, dataset: Dataset, device: torch.device) -> tuple[Segmenter, Source]:
    """Return the network of a weights file, in evaluation mode, and the dataset as the network's input.

    Raises:
        DataError: the file is damaged, was changed, or holds values that are not finite.
    """
    tensors, about = load_weights(path)
    if not is_finite(tensors):
        raise DataError(f"{path} holds weights that are not finite; choose other --weights, or train the fold again")
    return _build(tensors, about, path, dataset, device)


def _build(
    tensors: Tensors, about: dict[str, Any], path: Path, dataset: Dataset, device: torch.device
) -> tuple[Segmenter, Source]:
    recipe = parse(Recipe, migrated(about["recipe"]), str(path))
    model = build_model(recipe, about["num_channels"], about.get("label_position", 0))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise DataError(
            f"{path} does not fit the model of its own recipe, so it was changed: {error}; restore it"
        ) from error
    if device.type == "cpu":
        model.channels_last()  # saves a quarter of the time on a CPU
    return model.eval().to(device), source_of(dataset, recipe, Composite.from_dict(about["composite"]), device)


def _require_unchanged(run: Run, config: RunConfig, dataset: Dataset) -> None:
    exclude = config.recipe.data.exclude
    wrong = [
        f"the {what} (expected {expected[:16]}, found {found[:16]})"
        for what, expected, found in (
            (f"dataset {dataset.path}", config.data.dataset, dataset.fingerprint),
            (f"file list {config.recipe.data.filelist}", config.data.filelist, sha256(config.recipe.data.filelist)),
            (f"exclusion list {exclude}", config.data.exclude, sha256(exclude) if exclude else ""),
            ("code frozen in the run", config.code, code_digest(run.code / "contrails") if config.code else ""),
        )
        if expected != found
    ]
    if wrong:
        raise DataError(
            f"{run.name}: changed since the run was made: {', '.join(wrong)}; restore the old version, or give --allow "
            "to merge members of different data or code"
        )


def _finished(
    fold: Fold, done: dict[str, Any], config: RunConfig, dataset: Dataset, filelist: FileList, *, allow: bool
) -> Finished:
    for entry in done["weights"].values():
        path = fold.weights / entry["file"]
        if not path.is_file() or sha256(path) != entry["sha256"]:
            raise DataError(
                f"{path} is missing or is not the file that {fold.done} names; restore it, or train the fold again"
            )
        if not allow:
            _require_of_run(path, config, fold.run)
    return Finished(fold, done, config.recipe, dataset, *training_rows(dataset, filelist, fold.key, config.recipe))


def _require_of_run(path: Path, config: RunConfig, run: Run) -> None:
    """Check that weights match the run's current recipe, data and code; `resume --code current` changes the code."""
    about, its_data = read_about(path), config.data.model_dump(mode="json")
    same = {
        "recipe": parse(Recipe, migrated(about["recipe"]), str(path)) == config.recipe,
        "data": about.get("data", its_data) == its_data,
        "code": about.get("code", config.code) == config.code,
    }
    if differing := [what for what, is_same in same.items() if not is_same]:
        raise RunError(
            f"{path} was trained with other {' and '.join(differing)} than {run.toml} has; give --allow to merge it "
            "nevertheless"
        )


def _comparable(folds: Sequence[Finished]) -> list[str]:
    """Return the kinds that every fold with validation records has, the simplest first."""
    scored = [fold for fold in folds if len(fold.validation)] or list(folds)
    named = [name for name in scored[0].done["weights"] if all(name in fold.done["weights"] for fold in scored)]
    plainest_first = sorted(named, key=lambda name: (name != "best", name != "final", name))
    return [*plainest_first, *(kind for kind in _TRIED if all(len(_kept(fold)) > 1 for fold in scored))]


def _make(fold: Finished, kind: str, folder: Path, device: torch.device, tick: Callable[[], None]) -> Weights:
    if not len(fold.validation):
        kind = _unscored_kind(kind, fold)
    try:
        made = _chosen(fold, kind, folder, device)
    except NotFiniteError as error:
        raise DataError(
            f"{fold.name}, --weights {kind}: {error}: they are too large; choose another --weights of "
            f"{', '.join(fold.done['weights'])}, or train the fold with a lower train.lr under a new --name"
        ) from error
    tick()
    return made


def _chosen(fold: Finished, kind: str, folder: Path, device: torch.device) -> Weights:
    if kind in fold.done["weights"]:
        return _named(fold, kind, device)
    if kind == SOUP or AVERAGE.fullmatch(kind):
        return _averaged(fold, kind, folder, device)
    known = [*fold.done["weights"], SOUP, AUTO, "last5", "best5"]
    raise RecipeError(f"--weights {kind}: {fold.name} has none; {choices(kind, known)} (or another number)")


def _unscored_kind(kind: str, fold: Finished) -> str:
    """Return the kind to use instead for a fold without validation records, such as `--fold all`."""
    if kind in fold.done["weights"] or kind.startswith("last"):
        return kind
    counted = AVERAGE.fullmatch(kind)
    return f"last{counted[2]}" if counted and len(_kept(fold)) > 1 else "final"


def _named(fold: Finished, kind: str, device: torch.device) -> Weights:
    entry = fold.done["weights"][kind]
    path = fold.fold.weights / entry["file"]
    about = read_about(path)
    dice, threshold = about.get("dice"), about.get("threshold")
    if dice is None and len(fold.validation):
        model, source = load_member(path, fold.dataset, device)
        dice, threshold = _best(fold, model, source)
    return Weights(path, kind, (entry["epoch"],), dice, threshold, (entry["sha256"],))


def _best(fold: Finished, model: Segmenter, source: Source) -> tuple[float, float]:
    """Return the best Dice on the fold's validation records, and its threshold."""
    return evaluate(model, source, fold.validation, fold.recipe.train.batch_size, halve=True).histogram.best()


def _averaged(fold: Finished, kind: str, folder: Path, device: torch.device) -> Weights:
    offered = _offered(fold, kind)
    wanted = {"kind": kind, "offered": [[path.name, sha256(path)] for path in offered]}
    path = folder / f"{fold.name}-{kind}.safetensors"
    about = _about_of(path)
    if {key: about.get("lineage", {}).get(key) for key in wanted} != wanted:
        used = greedy_soup(offered, partial(_soup_dice, fold, device)) if kind == SOUP else offered
        tensors, about = _mean_of(fold, used, device)
        names = {each.name for each in used}
        about["lineage"] |= wanted | {"used": [entry for entry in wanted["offered"] if entry[0] in names]}
        save_weights(path, tensors, about)
    used_names, digests = zip(*about["lineage"]["used"], strict=True)
    epochs = tuple(sorted(read_about(fold.fold.weights / name)["epoch"] for name in used_names))
    return Weights(path, kind, epochs, about["dice"], about["threshold"], digests)


def _about_of(path: Path) -> dict[str, Any]:
    """Return the description of an average; empty if it is missing or damaged, so that it is made again."""
    try:
        return read_about(path) if path.is_file() else {}
    except DataError:
        return {}


def _offered(fold: Finished, kind: str) -> list[Path]:
    """Return the epochs that go into an average; for a soup, sorted by score."""
    kept = _kept(fold)
    by_dice = sorted((path for path in kept if _dice_of(path) is not None), key=lambda path: -(_dice_of(path) or 0))
    if kind == SOUP:
        chosen = by_dice
    else:
        counted = AVERAGE.fullmatch(kind)
        assert counted
        number = int(counted[2])
        chosen = kept[-number:] if counted[1] == "last" else by_dice[:number]
    if not chosen:
        raise RunError(
            f"{fold.name} kept no epoch for --weights {kind}; choose one of {', '.join(fold.done['weights'])}"
        )
    return chosen


def _kept(fold: Finished) -> list[Path]:
    """Return the weights of the epochs on disk, one file per epoch, in order."""
    by_epoch = {epoch: path for epoch, _, path in fold.fold.all_weights() if epoch <= fold.done["epoch"]}
    return list(by_epoch.values())


def _dice_of(path: Path) -> float | None:
    dice: float | None = read_about(path).get("dice")
    return dice


def _mean_of(fold: Finished, paths: Sequence[Path], device: torch.device) -> tuple[Tensors, dict[str, Any]]:
    """Return the mean of epochs with its own batch-norm statistics, and its description with scores."""
    about = read_about(paths[0]) | {"epoch": None, "step": None, "dice": None, "threshold": None}
    batch_size = fold.recipe.train.batch_size
    model, source = _build(average_weights(paths), about, paths[0], fold.dataset, device)
    about["lineage"] = {"batch_norm_records": refresh_batch_norm(model, source, fold.training, batch_size)}
    if len(fold.validation):
        about["dice"], about["threshold"] = _best(fold, model, source)
    return model.state_dict(), about


def _soup_dice(fold: Finished, device: torch.device, paths: Sequence[Path]) -> float:
    return float(_mean_of(fold, paths, device)[1]["dice"])


def is_all(fold: Finished) -> bool:
    """Return whether a fold trained on every record, so that it has no validation score."""
    return fold.fold.key == ALL


def mean_of_folds(folds: Sequence[Finished], weights: Sequence[Weights], path: Path, device: torch.device) -> None:
    """Write the mean of several folds' weights, with batch-norm statistics from all of their training records.

    Raises:
        DataError: the folds normalise their channels differently.
    """
    abouts = [read_about(made.path) for made in weights]
    if any(about["composite"] != abouts[0]["composite"] for about in abouts):
        raise DataError(
            "the folds normalise their channels by statistics of their own training records, so their weights cannot "
            "be averaged; merge their predictions by leaving out --average-folds"
        )
    lineage = {"kind": "mean of folds", "used": [[made.path.name, sha256(made.path)] for made in weights]}
    about = abouts[0] | dict.fromkeys(("epoch", "step", "dice", "threshold"))
    paths = [made.path for made in weights]
    model, source = _build(average_weights(paths), about, path, folds[0].dataset, device)
    rows = np.unique(np.concatenate([fold.training for fold in folds]))
    records = refresh_batch_norm(model, source, rows, folds[0].recipe.train.batch_size)
    about |= {"fold": "mean", "lineage": lineage | {"batch_norm_records": records}}
    save_weights(path, model.state_dict(), about)
