"""The outputs of every network."""

from typing import NamedTuple

import torch


class Outputs(NamedTuple):
    """Logits, float32; outputs of heads that the model does not have are None or empty.

    Shape:
        mask (B, H, W): the mask at the size of the label; with several heads their mean.
        classes (B,): whether the record has a contrail.
        share (B,): the fraction of the record that contrails cover.
        heads: the mask (B, H, W) of each head, if there are several.
        aux: the masks (B, H, W) of coarser decoder levels, from fine to coarse; only in training mode.
    """

    mask: torch.Tensor
    classes: torch.Tensor | None = None
    share: torch.Tensor | None = None
    heads: tuple[torch.Tensor, ...] = ()
    aux: tuple[torch.Tensor, ...] = ()
