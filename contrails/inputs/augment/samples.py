"""The samples that augmentation works on."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Samples:
    """Images with their labels.

    Shape:
        images float32 (B, T, C, H, W); target float32 (B, H, W): above 1/2 where more than half of the annotators
        marked the pixel, 0 where it is ignored; valid bool (B, H, W): False where ignored; weights float32 (B,): weight
        of each record in the loss, or None if all are 1.
    """

    images: torch.Tensor
    target: torch.Tensor
    valid: torch.Tensor
    weights: torch.Tensor | None = None

    def at(self, indices: torch.Tensor) -> "Samples":
        """Return copies of the samples at `indices`."""
        weights = None if self.weights is None else self.weights[indices]
        return Samples(self.images[indices], self.target[indices], self.valid[indices], weights)

    def replaced(self, indices: torch.Tensor, others: "Samples") -> "Samples":
        """Return a copy in which the samples at `indices` are replaced."""
        weights = self.weights
        if weights is not None and others.weights is not None:
            weights = weights.index_copy(0, indices, others.weights)
        return Samples(
            self.images.index_copy(0, indices, others.images),
            self.target.index_copy(0, indices, others.target),
            self.valid.index_copy(0, indices, others.valid),
            weights,
        )
