"""Predicting with an ensemble: the merged probabilities of its members, record by record."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from contrails.aggregate.members.members import load_member
from contrails.aggregate.members.merge import merge
from contrails.aggregate.members.views import View, predict_views
from contrails.aggregate.options import FULL
from contrails.dataset.store import Dataset
from contrails.dataset.verify import require_intact
from contrails.errors import DataError
from contrails.inputs.batch_size import in_fitting_batches, kind_of
from contrails.inputs.batches import Source, in_order
from contrails.models.segmenter import Segmenter

_BATCH_SIZES = {"cpu": 4, "cuda": 64}
"""Largest batch sizes, fewer for records larger than usual (see `contrails.inputs.batch_size`).

On a CPU larger batches are not faster, and activations take most of the memory. On a GPU larger ones only take memory:
the members prepare batches ahead.
"""

_USUAL_PIXELS = 256 * 256


@dataclass(frozen=True)
class Predictor:
    """Loaded members and the rule that merges them; memory does not grow with the number of records."""

    models: Sequence[tuple[Segmenter, Source]]
    paths: Sequence[Path]
    rule: str
    weights: Sequence[float]
    thresholds: Sequence[float]
    views: Sequence[View]
    pad: int
    precision: str = FULL

    def __call__(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield rows and their merged probabilities, in batches, in the order of `rows`.

        Raises:
            DataError: a record is damaged, or a member's output is not finite.
            GpuMemoryError: a single record does not fit in the GPU's memory.

        Shape:
            rows int64 (B,), probabilities uint16 (B, H, W).
        """
        source = self.models[0][1]
        times_usual = max(1.0, source.dataset.votes[0].size / _USUAL_PIXELS)
        largest = max(1, int(_BATCH_SIZES[source.device.type] / times_usual))
        kind = (*(kind_of(*each) for each in self.models), *self.views, self.pad, self.precision)
        return in_fitting_batches(rows, self._batches, kind, largest, source.device)

    def on(self, dataset: Dataset) -> "Predictor":
        """Return the same members for another dataset with the same bands and frames."""
        return replace(self, models=[(model, replace(source, dataset=dataset)) for model, source in self.models])

    def _batches(self, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        streams = [in_order(source, rows, batch_size) for _, source in self.models]
        for batches in zip(*streams, strict=True):
            with torch.inference_mode():
                probs = torch.stack(
                    [
                        predict_views(
                            model, batch.inputs, self.views, source.dataset.label_offset_px, self.pad, self.precision
                        )
                        for (model, source), batch in zip(self.models, batches, strict=True)
                    ]
                )
                require_intact(self.models[0][1].dataset, batches[0].rows)
                if not torch.isfinite(probs).all():
                    raise self._not_finite(batches[0].rows, probs)
                merged = merge(self.rule, probs, self.weights, self.thresholds)
            yield batches[0].rows, merged.cpu().numpy().astype(np.uint16)

    def _not_finite(self, rows: np.ndarray, probs: torch.Tensor) -> DataError:
        bad = ~torch.isfinite(probs).flatten(2).all(2).cpu().numpy()
        members = [str(path) for path, one in zip(self.paths, bad, strict=True) if one.any()]
        records = [self.models[0][1].dataset.record_ids[row] for row in rows[bad.any(0)]]
        why = "these weights are too large; make the ensemble with other --weights"
        if self.precision != FULL:
            why = f"in {self.precision}; make the ensemble again with --precision {FULL}"
        return DataError(
            f"the output of {', '.join(members)} is not finite for the records {', '.join(records)}: {why}"
        )


def load_predictor(
    paths: Sequence[Path],
    dataset: Dataset,
    device: torch.device,
    *,
    rule: str = "mean",
    weights: Sequence[float] = (1.0,),
    thresholds: Sequence[float] = (0.5,),
    views: Sequence[View] = (View(),),
    pad: int = 0,
    precision: str = FULL,
) -> Predictor:
    """Load members for a dataset; the rule does not matter for a single member."""
    models = [load_member(path, dataset, device) for path in paths]
    return Predictor(models, paths, rule, weights, thresholds, views, pad, precision)
