"""Features of an encoder as they were before the ReLU that ends each of its stages."""

from collections.abc import Sequence

import torch
from torch import nn


class BeforeRelu:
    """Keeps, while an encoder runs, what goes into each ReLU; the encoder itself goes on with the ReLU.

    Later stages see what pretrained weights expect, and a decoder gets features of both signs. What is kept takes as
    much memory as the encoder's activations.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self._seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        for module in encoder.modules():
            if isinstance(module, nn.ReLU | nn.ReLU6):
                module.inplace = False  # what goes in must stay
                module.register_forward_hook(self._note)

    def _note(self, _: nn.Module, arguments: tuple[torch.Tensor], output: torch.Tensor) -> None:
        self._seen.append((output, arguments[0]))

    def features(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the features of the encoder's last run before their ReLU; what none has made stays as it is."""
        before = {id(output): given for output, given in self._seen}
        found = [before.get(id(feature), feature) for feature in features]
        self._seen.clear()
        return found
