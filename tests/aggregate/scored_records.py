"""Labelled records with made-up probabilities, for what is fitted on them."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from contrails.aggregate.members.scored import Scored
from contrails.dataset.store import Dataset, open_dataset
from contrails.metrics import NUM_BINS


def scored_records(
    path: Path, masks: np.ndarray, probabilities: np.ndarray, parts: list[str], groups: list[str] | None = None
) -> Scored:
    """Return records of a dataset file whose labels, probabilities (float), parts and groups are given instead."""
    dataset: Dataset = open_dataset(path)
    count = len(masks)
    dataset = replace(
        dataset,
        votes=masks.astype(np.uint8),
        annotators=np.ones(count, np.uint8),
        record_ids=tuple(map(str, range(count))),
        groups=tuple(groups or map(str, range(count))),
    )
    stored = np.round(probabilities * (NUM_BINS - 1)).astype(np.uint16)
    return Scored(dataset, np.arange(count), np.array(parts), lambda index: stored[index])
