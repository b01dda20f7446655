"""What training minimises: the losses on the mask, and those of the model's other heads."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from contrails.inputs.batches import Batch
from contrails.losses.pixels import binary_cross_entropy
from contrails.losses.total import Loss
from contrails.models.outputs import Outputs
from contrails.recipe.recipe import Recipe

_AUX = 0.4
"""Weight of the finest level of deep supervision; each coarser one has half of the weight of the one before."""


class Objective(nn.Module):
    """The recipe's losses on the mask, plus the cross entropy of each other head times its weight.

    The classifier learns whether a record has a positive pixel, the share head (sigmoid) which part of the pixels that
    count is covered. With `gate` the mask is learnt on records with a positive pixel alone.
    """

    def __init__(self, recipe: Recipe, positive_rate: Callable[[], float] | None = None) -> None:
        """Take the options of a recipe; `positive_rate` is as in `Loss`."""
        super().__init__()
        model, loss = recipe.model, recipe.loss
        self.mask = Loss(loss, positive_rate)
        self._gate = loss.gate
        there = {"classes": model.classifier, "share": model.share, "aux": model.deep_supervision > 0}
        weights = {"classes": loss.classes or 1.0, "share": loss.share or 1.0, "aux": loss.aux or _AUX}
        self._weights = {name: weights[name] for name, is_there in there.items() if is_there}

    @property
    def names(self) -> list[str]:
        """Names of the parts, in the order in which they are returned."""
        return [*self.mask.names, *self._weights]

    def forward(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the total, to be minimised, and each part by its name."""
        positive = batch.hard.flatten(1).any(1).float()
        records = torch.ones_like(positive) if batch.weights is None else batch.weights
        masks = records * positive if self._gate else records
        total, parts = self.mask(outputs.mask, batch.target, batch.valid, masks, outputs.heads)
        for name, weight in self._weights.items():
            if name == "aux":
                parts[name] = _aux(outputs.aux, batch, masks)
            elif name == "classes":
                parts[name] = _of_records(outputs.classes, positive, batch, records)
            else:
                parts[name] = _of_records(outputs.share, _covered(batch), batch, records)
            total = total + weight * parts[name]
        return total, parts

    def end_step(self, add: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Let what a step saw become part of the state; `add` sums a tensor over all ranks."""
        self.mask.end_step(add)


def _aux(levels: Sequence[torch.Tensor], batch: Batch, records: torch.Tensor) -> torch.Tensor:
    counts = batch.valid * records.view(-1, 1, 1)
    losses = [binary_cross_entropy(level, batch.target, counts) / 2**i for i, level in enumerate(levels)]
    return torch.stack(losses).sum()


def _covered(batch: Batch) -> torch.Tensor:
    """Return the share of the pixels that count which is positive, (B,)."""
    return (batch.target * batch.valid).flatten(1).sum(1) / batch.valid.flatten(1).sum(1).clamp(min=1)


def _of_records(logits: torch.Tensor | None, target: torch.Tensor, batch: Batch, records: torch.Tensor) -> torch.Tensor:
    """Return the mean cross entropy of labelled records, each as its weight says."""
    assert logits is not None
    counts = batch.valid.flatten(1).any(1) * records
    losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (losses * counts).sum() / counts.sum().clamp(min=1e-6)
