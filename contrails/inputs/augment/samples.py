"""What augmentation works on."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Samples:
    """Images with their labels.

    Shape:
        images float32 (B, T, C, H, W); target float32 (B, H, W): above 1/2 where most annotators marked, 0 where it is
        ignored; valid bool (B, H, W): what counts; weights float32 (B,): how much each record counts in the loss;
        None: 1.
    """

    images: torch.Tensor
    target: torch.Tensor
    valid: torch.Tensor
    weights: torch.Tensor | None = None

    def at(self, indices: torch.Tensor) -> "Samples":
        """Return copies of some of them."""
        weights = None if self.weights is None else self.weights[indices]
        return Samples(self.images[indices], self.target[indices], self.valid[indices], weights)

    def replaced(self, indices: torch.Tensor, others: "Samples") -> "Samples":
        """Return all of them with those at `indices` replaced; nothing of this is changed."""
        weights = self.weights
        if weights is not None and others.weights is not None:
            weights = weights.index_copy(0, indices, others.weights)
        return Samples(
            self.images.index_copy(0, indices, others.images),
            self.target.index_copy(0, indices, others.target),
            self.valid.index_copy(0, indices, others.valid),
            weights,
        )
