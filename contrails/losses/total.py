"""The total loss: the weighted sum of a recipe's terms, and each term by name."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from contrails.losses import boundaries, lovasz, pixels, regions
from contrails.recipe.loss import AnyTerm, BceTerm, LossSection, RegionTerm

_PIXELS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Any], torch.Tensor]] = {
    "bce": pixels.binary_cross_entropy,
    "softmax_ce": pixels.softmax_cross_entropy,
    "focal": pixels.focal,
    "quality_focal": pixels.quality_focal,
    "hinge": lambda logits, target, counts, _: pixels.hinge(logits, target, counts),
    "mse": lambda logits, target, counts, _: pixels.mse(logits, target, counts),
    "symmetric_ce": pixels.symmetric_cross_entropy,
    "ohem": pixels.ohem,
    "lovasz_hinge": lovasz.lovasz_hinge,
    "boundary": boundaries.boundary,
    "boundary_f1": boundaries.boundary_f1,
}
_REGIONS: dict[str, Callable[[torch.Tensor, Any], torch.Tensor]] = {
    "dice": regions.dice,
    "log_dice": regions.log_dice,
    "jaccard": regions.jaccard,
    "tversky": regions.tversky,
}

_MEMORY = 0.99
"""Decay per step of global sums, which then cover about the last 100 steps."""

_SMALLEST = 1e-6
"""Smallest magnitude by which a term is scaled, so that a vanishing term is not scaled without bound."""


class Loss(nn.Module):
    """The weighted sum of the terms of a recipe.

    With `normalise` each term is scaled to the magnitude of the first one by a factor without gradient: the total is
    the sum of w_i L_i |L_1| / |L_i|. The parts are returned unscaled.

    A "global" term adds the sums of earlier steps, which decay by 1% per step, to those of the batch, so that it is one
    minus the overlap over all of them. A batch is only a fraction of these sums, so the gradient is multiplied by the
    effective number of batches in them. The sums are the only state, in the buffer `sums`: I, P, T (see
    `contrails.losses.regions`) and the number of batches.
    """

    sums: torch.Tensor

    def __init__(self, section: LossSection, positive_rate: Callable[[], float] | None = None) -> None:
        """Build the terms of a recipe.

        Args:
            section: the loss in the recipe.
            positive_rate: returns the fraction of positive pixels in the training split; called if a term needs it.
        """
        super().__init__()
        self._normalise = section.normalise
        self._terms = {name: _resolved(term, positive_rate) for name, term in _named(section.terms).items()}
        self._global = [n for n, term in self._terms.items() if isinstance(term, RegionTerm) and term.over == "global"]
        self.register_buffer("sums", torch.zeros(len(self._global), 4))
        self._seen = torch.zeros_like(self.sums)

    @property
    def names(self) -> list[str]:
        """Names of the parts, in the order of `forward`; a second term of a kind is called `dice_2`."""
        return list(self._terms)

    def forward(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        valid: torch.Tensor,
        weights: torch.Tensor | None = None,
        heads: Sequence[torch.Tensor] = (),
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the total loss and each part by its name.

        Args:
            logits: logits of the mask.
            target: fraction of the annotators, or 0 and 1.
            valid: False for ignored pixels.
            weights: weight of each record; None for 1.
            heads: logits of the single heads, for terms with a `head`.

        Shape:
            logits, target, heads float32 (B, H, W), valid bool (B, H, W), weights float32 (B,).
        """
        counts = valid.float() if weights is None else valid * weights.view(-1, 1, 1)
        parts = {
            name: self._term(name, term, logits if term.head is None else heads[term.head], target, counts)
            for name, term in self._terms.items()
        }
        return self._total(parts), parts

    def end_step(self, add: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Add the sums of a step to the global sums; `add` sums a tensor over all ranks."""
        if self._global:
            self.sums.mul_(_MEMORY).add_(add(self._seen))
            self._seen = torch.zeros_like(self.sums)

    def _term(
        self, name: str, term: AnyTerm, logits: torch.Tensor, target: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor:
        if not isinstance(term, RegionTerm):
            return _PIXELS[term.name](logits, target, counts, term)
        sums = regions.overlap(logits, target, counts, term)
        if name in self._global:
            return self._over_steps(name, term, sums)
        return regions.over_records(_REGIONS[term.name](sums, term), counts)

    def _over_steps(self, name: str, term: RegionTerm, sums: torch.Tensor) -> torch.Tensor:
        index = self._global.index(name)
        sums = torch.cat([sums, sums.new_ones(1)])
        self._seen = self._seen.to(sums.device)
        self._seen[index] += sums.detach()
        over_all = _MEMORY * self.sums[index] + sums
        loss = _REGIONS[term.name](over_all[:3], term)
        return loss.detach() + over_all[3].detach() * (loss - loss.detach())

    def _total(self, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        sizes = [part.detach().abs() for part in parts.values()]
        total = torch.zeros_like(sizes[0])
        for term, part, size in zip(self._terms.values(), parts.values(), sizes, strict=True):
            factor = sizes[0] / size.clamp(min=_SMALLEST) if self._normalise and size is not sizes[0] else 1.0
            total = total + term.weight * factor * part
        return total


def _named(terms: tuple[AnyTerm, ...]) -> dict[str, AnyTerm]:
    """Return the terms by unique names."""
    named: dict[str, AnyTerm] = {}
    for term in terms:
        count = sum(other.name == term.name for other in named.values()) + 1
        named[term.name if count == 1 else f"{term.name}_{count}"] = term
    return named


def _resolved(term: AnyTerm, positive_rate: Callable[[], float] | None) -> AnyTerm:
    """Return a term with `pos_weight = "balanced"` replaced by its number."""
    if not isinstance(term, BceTerm) or term.pos_weight != "balanced":
        return term
    assert positive_rate is not None
    return term.model_copy(update={"pos_weight": 1 / positive_rate()})
