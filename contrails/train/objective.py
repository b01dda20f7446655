"""The objective of training: the losses on the mask, and those of the model's other heads."""

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
"""Weight of the finest level of deep supervision; the weight halves with each coarser level."""


class Objective(nn.Module):
    """The recipe's losses on the mask, plus the weighted cross entropy of each other head.

    The target of the classifier is 1 for records with a positive pixel. The target of the share head (a sigmoid) is the
    positive fraction of the valid pixels. With `gate`, the mask is trained only on records with a positive pixel.
    """

    def __init__(self, recipe: Recipe, positive_rate: Callable[[], float] | None = None) -> None:
        """Build the losses of a recipe; `positive_rate` as in `Loss`."""
        super().__init__()
        model, loss = recipe.model, recipe.loss
        self.mask = Loss(loss, positive_rate)
        self._gate = loss.gate
        has_head = {"classes": model.classifier, "share": model.share, "aux": model.deep_supervision > 0}
        weights = {"classes": loss.classes or 1.0, "share": loss.share or 1.0, "aux": loss.aux or _AUX}
        self._weights = {name: weights[name] for name, is_built in has_head.items() if is_built}

    @property
    def names(self) -> list[str]:
        """Names of the parts, in the order of `forward`."""
        return [*self.mask.names, *self._weights]

    def forward(self, outputs: Outputs, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the total loss and each part by its name."""
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
        """Add the sums of a step to the state of global losses; `add` sums a tensor over all ranks."""
        self.mask.end_step(add)


def _aux(levels: Sequence[torch.Tensor], batch: Batch, records: torch.Tensor) -> torch.Tensor:
    counts = batch.valid * records.view(-1, 1, 1)
    losses = [binary_cross_entropy(level, batch.target, counts) / 2**i for i, level in enumerate(levels)]
    return torch.stack(losses).sum()


def _covered(batch: Batch) -> torch.Tensor:
    """Return the positive fraction of the valid pixels of each record, (B,)."""
    return (batch.target * batch.valid).flatten(1).sum(1) / batch.valid.flatten(1).sum(1).clamp(min=1)


def _of_records(logits: torch.Tensor | None, target: torch.Tensor, batch: Batch, records: torch.Tensor) -> torch.Tensor:
    """Return the weighted mean of the cross entropy over records with a valid pixel."""
    assert logits is not None
    counts = batch.valid.flatten(1).any(1) * records
    losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (losses * counts).sum() / counts.sum().clamp(min=1e-6)
