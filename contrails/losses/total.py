"""What is minimised: the weighted sum of a recipe's terms, and each of them by name."""

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
"""What global sums keep of themselves a step: they are of about the last 100 steps."""

_SMALLEST = 1e-6
"""A term of less magnitude is not enlarged further."""


class Loss(nn.Module):
    """The sum of the terms of a recipe, each times its weight.

    With `normalise` each term is first brought to the magnitude of the first one, by a factor that carries no gradient:
    sum of w_i L_i |L_1| / |L_i|. Parts are monitored as they are.

    A term over "global" regions adds the sums of earlier steps to those of the batch, so that it is one minus the
    overlap over all of them. They fade by 1% a step; its gradient is enlarged by as much as they outnumber the batch.
    They are the only state, the buffer `sums`: I, P, T (see `contrails.losses.regions`) and the number of batches.
    """

    sums: torch.Tensor

    def __init__(self, section: LossSection, positive_rate: Callable[[], float] | None = None) -> None:
        """Take the options of a recipe.

        Args:
            section: the terms.
            positive_rate: called for the share of positive pixels in the training split where a term needs it.
        """
        super().__init__()
        self._normalise = section.normalise
        self._terms = {name: _resolved(term, positive_rate) for name, term in _named(section.terms).items()}
        self._global = [n for n, term in self._terms.items() if isinstance(term, RegionTerm) and term.over == "global"]
        self.register_buffer("sums", torch.zeros(len(self._global), 4))
        self._seen = torch.zeros_like(self.sums)

    @property
    def names(self) -> list[str]:
        """Names of the parts, in the order in which they are returned; a second term of a kind is called `dice_2`."""
        return list(self._terms)

    def forward(
        self,
        logits: torch.Tensor,
        target: torch.Tensor,
        valid: torch.Tensor,
        weights: torch.Tensor | None = None,
        heads: Sequence[torch.Tensor] = (),
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the total, to be minimised, and each part by its name.

        Args:
            logits: of the mask.
            target: share of annotators, or 0 and 1.
            valid: what counts.
            weights: how much each record counts; 1 where nothing is given.
            heads: logits of single heads, for the terms that name one.

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
        """Let the sums of a step become part of those before; `add` sums a tensor over all ranks."""
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
    """Return terms by names that differ."""
    named: dict[str, AnyTerm] = {}
    for term in terms:
        count = sum(other.name == term.name for other in named.values()) + 1
        named[term.name if count == 1 else f"{term.name}_{count}"] = term
    return named


def _resolved(term: AnyTerm, positive_rate: Callable[[], float] | None) -> AnyTerm:
    """Return a term with the weight of positive pixels as a number."""
    if not isinstance(term, BceTerm) or term.pos_weight != "balanced":
        return term
    assert positive_rate is not None
    return term.model_copy(update={"pos_weight": 1 / positive_rate()})
