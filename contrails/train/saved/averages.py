"""Averages of a model's weights over its training: exponential (EMA) and with equal weights (SWA)."""

import torch
from torch import nn


class Average:
    """A running average of the parameters and buffers of a model; integer tensors are copied, not averaged."""

    def __init__(self, model: nn.Module) -> None:
        # the tensors of a state_dict share memory with the model, so these lists stay current
        self._sources = model.state_dict()
        self.tensors = {name: tensor.clone() for name, tensor in self._sources.items()}
        self.count = 0
        names = [name for name, tensor in self.tensors.items() if tensor.is_floating_point()]
        self._pairs = [self.tensors[name] for name in names], [self._sources[name] for name in names]
        self._others = [name for name in self.tensors if name not in set(names)]

    def update(self, weight: float) -> None:
        """Move the average towards the model: `average + weight * (model - average)`."""
        torch._foreach_lerp_(*self._pairs, weight)
        for name in self._others:
            self.tensors[name].copy_(self._sources[name])
        self.count += 1

    def update_mean(self) -> None:
        """Add the model's weights to the mean of all weights so far (SWA, Izmailov et al. 2018)."""
        self.update(1 / (self.count + 1))

    def update_exponential(self, decay: float) -> None:
        """Update the exponential average with `decay`, lowered in the first steps so that initial weights fade soon."""
        self.update(1 - min(decay, (1 + self.count) / (10 + self.count)))

    def state_dict(self) -> dict[str, object]:
        return {"tensors": self.tensors, "count": self.count}

    def load_state_dict(self, content: dict[str, object]) -> None:
        tensors = content["tensors"]
        assert isinstance(tensors, dict)
        assert isinstance(content["count"], int)
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
        self.count = content["count"]
