"""What every network answers with."""

from typing import NamedTuple

import torch


class Outputs(NamedTuple):
    """Logits, float32; what a recipe does not ask for is None or empty.

    Shape:
        mask (B, H, W): the one that counts, at the label's size; with several heads their mean.
        classes (B,): whether the record has a contrail.
        share (B,): of the share of the field that is covered.
        heads: each head's own mask (B, H, W), where there are several.
        aux: masks (B, H, W) of coarser decoder levels, from fine to coarse, in training mode only.
    """

    mask: torch.Tensor
    classes: torch.Tensor | None = None
    share: torch.Tensor | None = None
    heads: tuple[torch.Tensor, ...] = ()
    aux: tuple[torch.Tensor, ...] = ()
