"""The gate of two stages: opened, asked out of fold, and kept in the folder of what it gates.

How it is fitted and used stands in `contrails.aggregate.decide.gate`.
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
    """Read the ensemble that says which records hold anything.

    Raises:
        RunError: it is of another file list, so its folds have seen records that these are scored on.
        RecipeError: --gate does not go together with another option.
    """
    gate, filelist = read_ensemble(Path(options.gate)), fold.recipe.data.filelist
    if gate.request["filelist"]["sha256"] != sha256(filelist):
        raise RunError(
            f"{gate.path} was made with the file list {gate.request['filelist']['path']}, whose folds are not those of "
            f"{filelist}: it may have seen records that are scored here; give a gate with the same file list"
        )
    if gate.path.resolve() == path.resolve():
        raise RecipeError(f"--gate: {path} would be its own gate; give the new ensemble another --name")
    if gate.gate_below is not None or options.average_folds:
        what = "--average-folds" if options.average_folds else f"{gate.path}, which has a gate itself"
        raise RecipeError(f"--gate: expected an ensemble without a gate before single folds, found {what}")
    return gate


def copy_gate(gate: Ensemble, folder: Path) -> None:
    """Copy what prediction needs of an ensemble; its description comes last."""
    for name in (FILELIST, *(member.file for member in gate.members), DESCRIPTION):
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(gate.path / name, temporary)


def figures_of(gate: Ensemble) -> dict[str, Any]:
    """Return how good a gate is on its own, out of fold, for the table of what is behind it; a classifier by record."""
    of_records = {key: gate.scores[key] for key in ("auc", "auc_pr", "confusion") if key in gate.scores}
    by = gate.scores.get("scored_by", "pixel")
    return {"dice_of_gate": gate.scores.get("dice_cross_fitted"), "gate_scored_by": by} | of_records


def gate_scores(gate: Ensemble, found: OutOfFold) -> np.ndarray:
    """Return the gate's score of each record, out of fold, float64 (N,).

    Raises:
        RunError: the gate lacks some of them.
    """
    predicted, dataset = StoredProbabilities(gate, found.first.dataset), found.first.dataset
    names = [dataset.record_ids[row] for row in found.rows]
    if missing := [name for name in names if name not in predicted]:
        raise RunError(
            f"{gate.path} predicted {len(missing)} of {len(names)} records not out of fold, such as {missing[0]}; "
            "train and aggregate the folds of the gate that these runs have"
        )
    return np.array([top_logit(predicted[name]) for name in names])
