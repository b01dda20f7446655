"""Features of an encoder before the last ReLU of each stage."""

from collections.abc import Sequence

import torch
from torch import nn


class BeforeRelu:
    """Records the input of each ReLU while an encoder runs.

    The encoder itself still applies the ReLU, so that later stages get what pretrained weights expect, while a decoder
    gets features of both signs. The recorded inputs take as much memory as the activations of the encoder.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        for module in encoder.modules():
            if isinstance(module, nn.ReLU | nn.ReLU6):
                module.inplace = False  # an in-place ReLU would overwrite the recorded input
                module.register_forward_hook(self._note)

    def _note(self, _: nn.Module, arguments: tuple[torch.Tensor], output: torch.Tensor) -> None:
        self._seen.append((output, arguments[0]))

    def features(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the features of the last run as they were before their ReLU; features without a ReLU are unchanged."""
        before = {id(output): given for output, given in self._seen}
        found = [before.get(id(feature), feature) for feature in features]
        self._seen.clear()
        return found
