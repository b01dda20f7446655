"""Predicting with an ensemble: merged probabilities of its members, its gate, and masks."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contrails.aggregate.decide.gate import behind_gate
from contrails.aggregate.decide.postprocess import apply
from contrails.aggregate.ensemble import Ensemble
from contrails.aggregate.members.predict import load_predictor
from contrails.aggregate.members.prediction_files import PredictRows, Wanted, complete, is_of
from contrails.aggregate.members.untile import Batches, Whole, untile
from contrails.aggregate.members.views import parse_views
from contrails.dataset.store import Dataset
from contrails.errors import DataError
from contrails.sources.tiles import Blend

LARGEST_WITH_STEPS = 64_000_000
"""Largest number of pixels of a scene that is post-processed, since that needs the whole scene in memory."""


def predictor(ensemble: Ensemble, dataset: Dataset, device: torch.device) -> PredictRows:
    """Load the members for the records of a dataset.

    Raises:
        DataError: the dataset's units or values differ from those that the members were trained on.
    """
    ensemble.require_like(dataset)
    return predictors(ensemble, dataset, device)(dataset)


def predictors(ensemble: Ensemble, dataset: Dataset, device: torch.device) -> Callable[[Dataset], PredictRows]:
    """Load the members once, for this dataset and others with the same bands and frames."""
    masks = load_predictor(
        [ensemble.path / member.file for member in ensemble.members],
        dataset,
        device,
        rule=ensemble.options.merge,
        weights=[member.weight for member in ensemble.members],
        thresholds=[member.threshold for member in ensemble.members],
        views=parse_views(ensemble.options.tta),
        pad=ensemble.options.pad,
        precision=ensemble.options.precision,
    )
    gate, cut = ensemble.gate(), ensemble.gate_below
    if gate is None or cut is None:
        return masks.on
    gates = predictors(gate, dataset, device)
    return lambda other: behind_gate(masks.on(other), gates(other), cut)


def predict_into(
    ensemble: Ensemble,
    dataset: Dataset,
    rows: np.ndarray,
    file: Path,
    device: torch.device,
    *,
    replace_others: bool = True,
) -> np.ndarray:
    """Predict records into a file that can be resumed, and return them memory-mapped, uint16 (N, H, W).

    Raises:
        DataError: the file holds other predictions, and may not be replaced.
    """
    wanted = wanted_of(ensemble, dataset, rows, device)
    if not replace_others and file.exists() and not is_of(file, wanted):
        raise DataError(
            f"{file} exists and holds other predictions; give another name for the new ones, or --force to replace it"
        )
    return complete(file, wanted, predictor(ensemble, dataset, device), f"predictions: {file.stem}")


def wanted_of(ensemble: Ensemble, dataset: Dataset, rows: np.ndarray, device: torch.device) -> Wanted:
    """Return the description of a file of an ensemble's predictions."""
    height, width = dataset.votes.shape[1:]
    return Wanted(
        rows=rows,
        record_ids=tuple(dataset.record_ids[row] for row in rows),
        shape=(height, width),
        member="ensemble",
        about=identity_of(ensemble, device) | {"dataset": dataset.fingerprint},
    )


def identity_of(ensemble: Ensemble, device: torch.device) -> dict[str, Any]:
    """Return everything that determines merged probabilities, except the input."""
    members = [[member.sha256, member.weight, member.threshold] for member in ensemble.members]
    made_of = {"members": members, "options": ensemble.options.record(), "gate_below": ensemble.gate_below}
    if (gate := ensemble.gate()) is not None:
        made_of["gate"] = identity_of(gate, device)
    return made_of | {"device": device.type}


def masks_of(
    ensemble: Ensemble, dataset: Dataset, batches: Batches, blend: Blend = "hann"
) -> Iterator[tuple[Whole, np.ndarray]]:
    """Yield each whole record and its mask, bool (H, W), from merged probabilities of all records.

    A scene of more than 64 million pixels gets the threshold only, without post-processing.
    """
    for whole in untile(dataset, batches, blend):
        steps = ensemble.steps if whole.probabilities.size <= LARGEST_WITH_STEPS else ()
        yield whole, apply(whole.probabilities, ensemble.threshold, steps) & whole.predicted
