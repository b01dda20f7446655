"""Weights files of a fold: of the last and the best epochs, and averages. Each can be used without other files."""

from dataclasses import dataclass
from typing import Any

import torch

from contrails.files import sha256
from contrails.inputs.batches import Source
from contrails.models.weights import save_weights
from contrails.recipe.recipe import Recipe
from contrails.runs.folder import Fold
from contrails.train.saved.finite import require_finite
from contrails.train.saved.state import KeptWeights, TrainState


@dataclass(frozen=True)
class WeightsFiles:
    """Writes the weights files of an attempt; `origin` is the data and code that they are made from."""

    fold: Fold
    attempt: int
    recipe: Recipe
    source: Source
    origin: dict[str, Any]

    def of_epoch(self, state: TrainState, dice: float | None, threshold: float | None) -> list[KeptWeights]:
        """Write the weights of an epoch; return the files to keep: those of the last and of the best epochs.

        Raises:
            NotFiniteError: the weights are not finite.
        """
        keep = self.recipe.snapshot
        written = self.write(f"epoch{state.epoch:04d}", state, state.model.state_dict(), dice, threshold)
        kept = [*state.kept, written]
        best = sorted((k for k in kept if k.dice is not None), key=lambda k: (-(k.dice or 0), k.epoch))
        stays = {k.epoch for k in (*kept[-keep.keep_last :], *best[: keep.keep_best])}
        return [k for k in kept if k.epoch in stays]

    def write(
        self,
        kind: str,
        state: TrainState,
        tensors: dict[str, torch.Tensor],
        dice: float | None,
        threshold: float | None,
    ) -> KeptWeights:
        """Write the weights `tensors` at a state, with their scores.

        Raises:
            NotFiniteError: the tensors are not finite.
        """
        path = self.fold.weights_file(kind, self.attempt)
        about = {
            "recipe": self.recipe.model_dump(mode="json"),
            "composite": self.source.composite.to_dict(),
            "num_channels": self.source.num_channels,
            "label_position": self.source.label_position,
            "fold": self.fold.key,
            **self.origin,
            "epoch": state.epoch,
            "step": state.step,
            "dice": dice,
            "threshold": threshold,
        }
        require_finite(tensors)
        save_weights(path, tensors, about)
        return KeptWeights(state.epoch, path.name, sha256(path), dice, threshold)

    def forget(self, snapshot: dict[str, Any]) -> None:
        """Remove the weights files that a complete snapshot no longer refers to."""
        kept = {weights["file"] for weights in snapshot["kept"]}
        for epoch, _, path in self.fold.all_weights():
            if path.name not in kept and epoch <= snapshot["epoch"]:
                path.unlink(missing_ok=True)
