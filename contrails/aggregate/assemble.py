"""Making an ensemble from finished folds: choose weights, predict out of fold, fit, and score.

The folds belong to one run, or to several with the same data and file list. An interrupted aggregation continues with
the weights and predictions that exist. Everything that the result depends on is recorded, so that it can be reproduced.
"""

import platform
import shlex
import shutil
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import contrails
from contrails.aggregate.apply import predict_into
from contrails.aggregate.ensemble import (
    DESCRIPTION,
    FILELIST,
    GATE,
    Ensemble,
    Member,
    read_ensemble,
    write_ensemble,
)
from contrails.aggregate.members.inputs import inputs_of
from contrails.aggregate.members.members import (
    Finished,
    Weights,
    choose_weights,
    finished_folds,
    is_all,
    mean_of_folds,
    num_made,
)
from contrails.aggregate.members.scored import Scored
from contrails.aggregate.members.views import parse_views
from contrails.aggregate.options import AUTO, FULL, Options
from contrails.aggregate.scores.fit import Fit, change_of_dice, fit_out_of_fold, held_out_scores
from contrails.aggregate.scores.gate_scores import copy_gate, figures_of, gate_scores, open_gate
from contrails.aggregate.scores.outoffold import Predicted, join_series, predict_out_of_fold
from contrails.dataset.store import Dataset
from contrails.errors import DataError, RecipeError, RunError
from contrails.files import atomic_path, code_digest, sha256, write_atomic
from contrails.folds.filelists import read_filelist
from contrails.progress import bar
from contrails.runs.folder import Run

_NO_SCORE = "none: no member has validation records, so the threshold is not fitted"
_LIBRARIES = ("torch", "numpy", "scipy", "h5py", "safetensors", "timm", "segmentation_models_pytorch")


def make_ensemble(runs: Sequence[Run], path: Path, options: Options, device: torch.device) -> Ensemble:
    """Merge the finished folds of runs into the folder `path`; return an existing ensemble if it would be the same.

    Raises:
        RunError: no fold is finished, or the runs have different data.
        RecipeError: an option has an invalid value.
    """
    options.require_known()
    folds = _finished(runs, options)
    gate = open_gate(folds[0], path, options) if options.gate else None
    request = _request(runs, folds, options)
    existing = _existing(path)
    if existing is not None and existing.request == request and _is_current(existing):
        return existing
    held_out = _held_out_rows(folds[0])
    if options.average_folds and not len(held_out):
        raise RunError(
            "--average-folds: expected held-out records to score the mean of the folds, found none in the file list "
            "(each fold has trained on the others' validation records); leave --average-folds out, or make a file list "
            f"with `contrails split {shlex.quote(str(folds[0].dataset.path))} --hold-out 0.1 -o NEW.csv`"
        )
    weights, compared = _weights(folds, path, options, device)
    fit, series = _fit(folds, weights, path, options, device, gate)
    if gate is not None and fit is None:
        raise RecipeError("--gate: expected validation records to fit its cut, found none; leave --gate out")
    thresholds = [made.threshold for made in weights if made.threshold is not None]
    inherited = float(np.mean(thresholds)) if thresholds else 0.5
    members = _members(folds, weights, path, dict(zip(series, fit.weights, strict=True)) if fit else {}, inherited)
    if options.average_folds:
        members = (_one_of_folds(folds, weights, path, inherited, device),)
    complete, present = _present(folds)
    scores: dict[str, Any] = (fit.scores if fit else _no_scores(folds[0])) | {"weights": compared}
    ensemble = Ensemble(
        path=path,
        members=members,
        options=options,
        threshold=fit.threshold if fit else inherited,
        steps=fit.steps if fit else (),
        scores=scores,
        complete=complete,
        folds=present,
        request=request,
        made_with=_made_with(device),
        gate_below=fit.gate_below if fit else None,
        inputs=inputs_of(folds[0].dataset),
    )
    if gate is not None and "gate" in scores:
        scores["gate"] |= figures_of(gate)
    if gate is not None and ensemble.gate_below is not None:
        copy_gate(gate, path / GATE)
    else:
        shutil.rmtree(path / GATE, ignore_errors=True)
    if len(held_out):
        scores["held_out"] = _score_held_out(ensemble, folds[0].dataset, held_out, device)
    if not complete:
        for figures in (scores, *([scores["held_out"]] if len(held_out) else [])):
            figures["records"] += f"; partial: {present}"
    write_atomic(path / FILELIST, folds[0].recipe.data.filelist.read_bytes())
    write_ensemble(ensemble)
    return read_ensemble(path)


def _existing(path: Path) -> Ensemble | None:
    try:
        return read_ensemble(path)
    except DataError:  # missing, of another version, or damaged: it is made again
        return None


def _no_scores(fold: Finished) -> dict[str, Any]:
    return {"records": _NO_SCORE} | ({"scored_by": "record"} if fold.scored_by == "record" else {})


def _is_current(ensemble: Ensemble) -> bool:
    """Return whether an ensemble holds all the scores that this version writes."""
    scores = ensemble.scores
    scored = "interval" in scores and scores.get("scored_by", "pixel") == ensemble.scored_by
    return ensemble.inputs is not None and (scored or "dice_by_fold" not in scores)


def _present(folds: Sequence[Finished]) -> tuple[bool, str]:
    """Return whether every run has every fold of the file list, and how many folds all runs have, as text."""
    by_run: dict[str, set[str]] = {}
    for fold in folds:
        keys = by_run.setdefault(fold.fold.run.name, set())
        keys |= set() if is_all(fold) else {fold.fold.key}
    present = set.intersection(*(keys for keys in by_run.values() if keys)) if any(by_run.values()) else set()
    expected = read_filelist(folds[0].recipe.data.filelist).num_folds
    return len(present) == expected, f"{len(present)} of {expected} folds"


def predict_shard(
    runs: Sequence[Run], path: Path, options: Options, share: tuple[int, int], device: torch.device
) -> list[str]:
    """Predict out of fold for every n-th fold, for use by `make_ensemble`; return the names of these members.

    Raises:
        RecipeError: the choice of weights depends on the other folds.
    """
    options.require_known()
    if options.weights == AUTO:
        raise RecipeError("--shard: --weights auto compares all folds; choose one kind, such as --weights best5")
    index, count = share
    folds = _finished(runs, options)[index - 1 :: count]
    weights, _ = _weights(folds, path, options, device) if folds else ([], {})
    _predict_out_of_fold(folds, weights, path, options, device)
    return [fold.name for fold in folds]


def _finished(runs: Sequence[Run], options: Options) -> list[Finished]:
    """Return the finished folds of all runs, ordered by the run's name."""
    ordered = sorted(runs, key=lambda run: run.name)
    if len({run.name for run in ordered}) != len(ordered):
        raise RunError(f"two runs have the same name ({', '.join(run.name for run in ordered)}): give each run once")
    folds = [finished_folds(run, allow=options.allow) for run in ordered]
    first, *others = [found[0] for found in folds]
    for other in others:
        _require_same_data(first, other)
    if len({found[0].scored_by for found in folds}) > 1:
        raise RunError(
            "expected runs of one kind, found classifiers (model.task = 'classify') and segmenters; aggregate the "
            "classifiers alone, and give their ensemble as --gate for the others"
        )
    if options.gate and folds[0][0].scored_by == "record":
        raise RecipeError("--gate: expected runs of segmenters, found classifiers; aggregate them without --gate")
    if options.average_folds and len(runs) > 1:
        raise RunError("--average-folds: expected the folds of one run, found several runs; give one run")
    return [fold for found in folds for fold in found]


def _require_same_data(first: Finished, other: Finished) -> None:
    names = f"{first.fold.run.name} and {other.fold.run.name}"
    if first.dataset.fingerprint != other.dataset.fingerprint:
        raise RunError(
            f"{names} were trained on different data ({first.dataset.path}, {other.dataset.path}), so one may have "
            "trained on records that the other validates on; merge runs with the same dataset"
        )
    mine, its = (read_filelist(fold.recipe.data.filelist) for fold in (first, other))
    fold_of = dict(zip(mine.record_ids, mine.folds, strict=True))
    differing = [r for r, fold in zip(its.record_ids, its.folds, strict=True) if fold_of.get(r) != fold]
    if differing:
        raise RunError(
            f"{names} have file lists that differ in the fold of {len(differing)} records, such as {differing[0]}; "
            "merge runs with the same file list"
        )


def _request(runs: Sequence[Run], folds: Sequence[Finished], options: Options) -> dict[str, Any]:
    recipe = folds[0].recipe
    return {
        "options": options.record(),
        "runs": {run.name: str(run.path) for run in runs},
        "folds": {fold.name: sha256(fold.fold.done) for fold in folds},
        "dataset": {"path": str(recipe.data.dataset), "fingerprint": folds[0].dataset.fingerprint},
        "filelist": {"path": str(recipe.data.filelist), "sha256": sha256(recipe.data.filelist)},
        "gate": sha256(Path(options.gate) / DESCRIPTION) if options.gate else None,
    }


def _made_with(device: torch.device) -> dict[str, Any]:
    """Return the code, libraries and machine, which determine the exact bits besides the request."""
    assert contrails.__file__ is not None
    return {
        "command": sys.argv[1:],
        "code": code_digest(Path(contrails.__file__).parent),
        "contrails": contrails.__version__,
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "num_threads": torch.get_num_threads(),
    }


def _weights(
    folds: Sequence[Finished], path: Path, options: Options, device: torch.device
) -> tuple[list[Weights], dict[str, dict[str, float]]]:
    """Return the weights of each fold, and for each run the Dice of every kind of weights that was compared."""
    by_run: dict[str, list[Finished]] = {}
    for fold in folds:
        by_run.setdefault(fold.fold.run.name, []).append(fold)
    weights, compared = [], {}
    with bar("weights", sum(num_made(of_run, options.weights) for of_run in by_run.values())) as advance:
        for name, of_run in by_run.items():
            chosen, compared[name] = choose_weights(
                of_run, options.weights, path / "averages", device, lambda: advance(1)
            )
            weights += chosen
    return weights, compared


def _fit(
    folds: Sequence[Finished],
    weights: Sequence[Weights],
    path: Path,
    options: Options,
    device: torch.device,
    gate: Ensemble | None,
) -> tuple[Fit | None, list[str]]:
    """Return the values fitted on out-of-fold predictions, and the names of the runs that get a weight each."""
    predicted = _predict_out_of_fold(folds, weights, path, options, device)
    found, exact = (join_series(each) for each in predicted)
    if found is None:
        return None, []
    several = options.fit_weights and len(found.series) > 1
    scores = None if gate is None else gate_scores(gate, found)
    fitted = fit_out_of_fold(found, options.merge, fit_weights=several, gate_scores=scores)
    if exact is not None:
        of_exact = fit_out_of_fold(exact, options.merge, fit_weights=several, gate_scores=scores)
        fitted.scores["precision"] = change_of_dice(fitted, of_exact) | {"name": options.precision}
    return fitted, [series.run for series in found.series]


def _predict_out_of_fold(
    folds: Sequence[Finished], weights: Sequence[Weights], path: Path, options: Options, device: torch.device
) -> tuple[list[Predicted], list[Predicted]]:
    """Return the predictions in the precision of the options; and if that is lower, also those in fp32."""
    views, folder = parse_views(options.tta), path / "out_of_fold"

    def predicted(folder: Path, precision: str) -> list[Predicted]:
        return [
            (fold, made, predict_out_of_fold(fold, made, folder, views, options.pad, precision, device))
            for fold, made in zip(folds, weights, strict=True)
            if not is_all(fold) and len(fold.validation)
        ]

    exact = [] if options.precision == FULL else predicted(folder / FULL, FULL)
    return predicted(folder, options.precision), exact


def _members(
    folds: Sequence[Finished],
    weights: Sequence[Weights],
    path: Path,
    run_weights: dict[str, float],
    inherited: float,
) -> tuple[Member, ...]:
    """Copy the weights into the ensemble's folder; the members of a run divide its weight equally."""
    default = sum(run_weights.values()) / len(run_weights) if run_weights else 1.0
    names = [fold.fold.run.name for fold in folds]
    members = []
    for fold, made, name in zip(folds, weights, names, strict=True):
        file, digest = f"{fold.name}.safetensors", sha256(made.path)
        if not (path / file).is_file() or sha256(path / file) != digest:
            with atomic_path(path / file) as temporary:
                shutil.copyfile(made.path, temporary)
        members.append(
            Member(
                file=file,
                sha256=digest,
                run=name,
                fold=fold.fold.key,
                kind=made.kind,
                epochs=list(made.epochs),
                sources=list(made.sources),
                dice=None if is_all(fold) else made.dice,
                threshold=inherited if made.threshold is None else made.threshold,
                weight=run_weights.get(name, default) / names.count(name),
            )
        )
    return tuple(members)


def _one_of_folds(
    folds: Sequence[Finished], weights: Sequence[Weights], path: Path, inherited: float, device: torch.device
) -> Member:
    """Write the mean of the folds' weights, with batch-norm statistics from all of their training records."""
    file = path / f"{folds[0].fold.run.name}-folds.safetensors"
    mean_of_folds(folds, weights, file, device)
    return Member(
        file=file.name,
        sha256=sha256(file),
        run=folds[0].fold.run.name,
        fold="mean of " + ", ".join(fold.fold.key for fold in folds),
        kind=weights[0].kind,
        epochs=sorted({epoch for made in weights for epoch in made.epochs}),
        sources=[sha256(made.path) for made in weights],
        dice=None,
        threshold=inherited,
        weight=1.0,
    )


def _held_out_rows(fold: Finished) -> np.ndarray:
    """Return the rows of labelled records that no fold trained or validated on, int64."""
    rows = fold.dataset.rows(read_filelist(fold.recipe.data.filelist).held_out())
    labelled: np.ndarray = rows[fold.dataset.annotators[rows] > 0]
    return labelled


def _score_held_out(ensemble: Ensemble, dataset: Dataset, rows: np.ndarray, device: torch.device) -> dict[str, Any]:
    probabilities = predict_into(ensemble, dataset, rows, ensemble.path / "held_out.h5", device)
    folds = np.full(len(rows), "held out")
    scored = Scored(dataset, rows, folds, lambda index: probabilities[index], ensemble.scored_by)
    return held_out_scores(scored, ensemble.threshold, ensemble.steps)
