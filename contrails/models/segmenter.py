"""The wrapper of a network: it resizes, pads and arranges the input, and reverts this on the output.

The precision of its forward pass is chosen here too.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from contrails.models.outputs import Outputs
from contrails.models.resize import deterministic_resizing
from contrails.models.temporal import as_panels, panel_offset

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of a forward pass in fp32, bf16 or fp16."""
    dtype = _DTYPES.get(precision)
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


class Segmenter(nn.Module):
    """A network whose input is resized to `size` and padded to a `multiple`; the output is resized back.

    With `panel`, frames are arranged as panels of one image, and the output is that of the panel with this number.
    """

    model: Any
    """A `contrails.models.network.Network`, or a module with the same interface."""

    def __init__(self, model: nn.Module, size: int | None, multiple: int, panel: int | None = None) -> None:
        super().__init__()
        self.model, self.size, self.multiple, self.panel = model, size, multiple, panel

    def forward(self, inputs: torch.Tensor, scale: float = 1.0) -> Outputs:
        """Return logits; `scale` multiplies the sides of the network's input.

        Shape:
            inputs (B, C, H, W), or (B, T, C, H, W) with frames as an axis; masks have the size of the label (H, W), to
            which they are resized before any loss.
        """
        with deterministic_resizing(inputs):
            return self._resized(inputs, scale)

    def _resized(self, inputs: torch.Tensor, scale: float) -> Outputs:
        height, width = inputs.shape[-2:]
        sides = (height, width) if self.size is None else (self.size, self.size)
        inner_height, inner_width = (round(scale * side) for side in sides)
        images = inputs.flatten(0, -4)
        if (inner_height, inner_width) != (height, width):
            images = functional.interpolate(images, (inner_height, inner_width), mode="bilinear")
        padding = (0, -inner_width % self.multiple, 0, -inner_height % self.multiple)
        if any(padding):
            images = functional.pad(images, padding, mode="replicate")
        seen = images.reshape(*inputs.shape[:-3], *images.shape[-3:])
        top, left = 0, 0
        if self.panel is not None:
            top, left = panel_offset(self.panel, seen)
            seen = as_panels(seen)

        def undone(mask: torch.Tensor) -> torch.Tensor:
            mask = mask[:, None, top : top + inner_height, left : left + inner_width].float()
            if (inner_height, inner_width) != (height, width):
                mask = functional.interpolate(mask, (height, width), mode="bilinear")
            return mask[:, 0]

        return _finished(self.model(seen), undone)

    def channels_last(self) -> "Segmenter":
        """Convert the weights of 2D layers, and thereby their outputs, to channels-last; return self."""
        for weights in self.parameters():
            if weights.ndim == 4:
                weights.data = weights.data.contiguous(memory_format=torch.channels_last)
        return self


def _finished(raw: Outputs, undone: Callable[[torch.Tensor], torch.Tensor]) -> Outputs:
    return Outputs(
        undone(raw.mask),
        None if raw.classes is None else raw.classes.float(),
        None if raw.share is None else raw.share.float(),
        tuple(undone(mask) for mask in raw.heads),
        tuple(undone(mask) for mask in raw.aux),
    )
