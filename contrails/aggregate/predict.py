"""Predictions of an ensemble: the mean of its members' probabilities, record by record."""

from collections.abc import Iterator

import numpy as np
import torch

from contrails.aggregate.ensemble import Ensemble, load_member
from contrails.data.batches import Source
from contrails.data.store import Dataset
from contrails.metrics import NUM_BINS
from contrails.progress import bar
from contrails.train.evaluate import predict

_BATCH_SIZE = 16


def predict_masks(ensemble: Ensemble, dataset: Dataset, device: torch.device) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each record's id and its mask, in the order of the dataset.

    Members are held in memory together and records go through in batches, so memory does not grow with the dataset.

    Shape:
        mask bool (H, W), true where the rounded mean probability reaches the ensemble's threshold.
    """
    members = [load_member(ensemble, member, dataset, device) for member in ensemble.members]
    first = round(ensemble.threshold * (NUM_BINS - 1))
    rows = np.arange(dataset.num_records)
    with bar("predictions", dataset.num_records) as advance:
        for start in range(0, len(rows), _BATCH_SIZE):
            part = rows[start : start + _BATCH_SIZE]
            probs = torch.stack([_probabilities(model, source, part) for model, source in members]).mean(0)
            masks = ((probs * (NUM_BINS - 1)).round() >= first).cpu().numpy()
            for row, mask in zip(part, masks, strict=True):
                yield dataset.record_ids[row], mask
            advance(len(part))


def _probabilities(model: torch.nn.Module, source: Source, rows: np.ndarray) -> torch.Tensor:
    return torch.cat([torch.sigmoid(logits) for _, logits in predict(model, source, rows, _BATCH_SIZE)])
