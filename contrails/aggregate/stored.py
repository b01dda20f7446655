"""Reading the results of an aggregation without torch: scores, steps, out-of-fold predictions.

Reports and comparisons use it.
"""

from pathlib import Path
from typing import Any

import numpy as np

from contrails.aggregate.members.prediction_files import read_predictions
from contrails.aggregate.members.scored import By, Scored
from contrails.dataset.store import open_dataset
from contrails.errors import DataError
from contrails.runs.folder import ALL, Run


def stored_out_of_fold(run: Run, folder: Path, figures: dict[str, Any]) -> Scored:
    """Return the records that the run's members validated on, with the probabilities of these members.

    Raises:
        DataError: the dataset or the predictions are missing, or differ from what was aggregated.
    """
    dataset = open_dataset(Path(figures["request"]["dataset"]["path"]))
    if dataset.fingerprint != figures["request"]["dataset"]["fingerprint"]:
        raise DataError(f"{dataset.path} is not the dataset that {folder} was made with; restore the old file")
    names = [member["run"] for member in figures["members"]]
    name = run.name if run.name in names else names[0]  # the folder may have been renamed
    keys = [key for stem in sorted(figures["request"]["folds"]) if (key := _fold_of(stem, name)) not in (None, ALL)]
    if not keys:
        raise DataError(f"{folder}: expected folds with validation records, found none; aggregate such folds")
    found = [(key, *read_predictions(folder / "out_of_fold" / f"{name}-fold{key}.h5")) for key in keys]
    rows = np.concatenate([dataset.rows(record_ids) for _, record_ids, _ in found])
    parts = np.concatenate([np.full(len(record_ids), fold) for fold, record_ids, _ in found])
    images = [image for _, _, probabilities in found for image in probabilities]
    return Scored(dataset, rows, parts, images.__getitem__, scored_by(figures))


def scored_by(figures: dict[str, Any]) -> By:
    """Return what the scores of an ensemble count; those of the first versions always counted pixels."""
    return "record" if figures["scores"].get("scored_by") == "record" else "pixel"


def _fold_of(stem: str, run: str) -> str | None:
    name, _, key = stem.rpartition("-fold")
    return key if name == run else None
