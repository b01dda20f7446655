"""The gate of two stages: reading it, scoring records with it out of fold, and copying it into the ensemble.

`contrails.aggregate.decide.gate` fits and applies it.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from contrails.aggregate.decide.postprocess import top_logit
from contrails.aggregate.ensemble import DESCRIPTION, FILELIST, Ensemble, read_ensemble
from contrails.aggregate.members.members import Finished
from contrails.aggregate.options import Options
from contrails.aggregate.scores.outoffold import OutOfFold, StoredProbabilities
from contrails.errors import RecipeError, RunError
from contrails.files import atomic_path, sha256


def open_gate(fold: Finished, path: Path, options: Options) -> Ensemble:
    """Read the ensemble that serves as the gate.

    Raises:
        RunError: it has another file list, so its folds may have trained on records that these validate on.
        RecipeError: --gate cannot be combined with another option.
    """
    gate, filelist = read_ensemble(Path(options.gate)), fold.recipe.data.filelist
    if gate.request["filelist"]["sha256"] != sha256(filelist):
        raise RunError(
            f"{gate.path} was made with the file list {gate.request['filelist']['path']}, whose folds differ from "
            f"those of {filelist}: it may have trained on records that are scored here; give a gate with the same "
            "file list"
        )
    if gate.path.resolve() == path.resolve():
        raise RecipeError(f"--gate: {path} would be its own gate; give the new ensemble another --name")
    if gate.gate_below is not None or options.average_folds:
        what = "--average-folds" if options.average_folds else f"{gate.path}, which has a gate itself"
        raise RecipeError(f"--gate: expected an ensemble without a gate before single folds, found {what}")
    return gate


def copy_gate(gate: Ensemble, folder: Path) -> None:
    """Copy the files of an ensemble that prediction needs; its description comes last, so that a copy is complete."""
    for name in (FILELIST, *(member.file for member in gate.members), DESCRIPTION):
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(gate.path / name, temporary)


def figures_of(gate: Ensemble) -> dict[str, Any]:
    """Return the gate's own scores, out of fold, for the table of stages; those of a classifier count records."""
    of_records = {key: gate.scores[key] for key in ("auc", "auc_pr", "confusion") if key in gate.scores}
    by = gate.scores.get("scored_by", "pixel")
    return {"dice_of_gate": gate.scores.get("dice_cross_fitted"), "gate_scored_by": by} | of_records


def gate_scores(gate: Ensemble, found: OutOfFold) -> np.ndarray:
    """Return the gate's score of each record, out of fold, float64 (N,).

    Raises:
        RunError: the gate has no prediction of some of them.
    """
    predicted, dataset = StoredProbabilities(gate, found.first.dataset), found.first.dataset
    names = [dataset.record_ids[row] for row in found.rows]
    if missing := [name for name in names if name not in predicted]:
        raise RunError(
            f"{gate.path} has no out-of-fold prediction of {len(missing)} of {len(names)} records, such as "
            f"{missing[0]}; train and aggregate the same folds for the gate as for these runs"
        )
    return np.array([top_logit(predicted[name]) for name in names])
