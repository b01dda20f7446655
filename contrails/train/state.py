"""All that changes while a fold trains, in one object with one `state_dict`.

What is not in here does not survive a kill. Random draws, the order of records and the learning rate are functions
of the step, so a position is two integers.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class KeptWeights:
    """Weights of one epoch on disk: file name in the fold's weights folder, its SHA-256, and how good they are."""

    epoch: int
    file: str
    sha256: str
    dice: float | None
    threshold: float | None


@dataclass
class TrainState:
    """Mutable state of one fold.

    `step` counts optimiser steps, `epoch` the epochs that were validated; `loss_sum` and `loss_steps` are the running
    mean since the last row of metrics, the sum on the device (float64 scalar), so that no step waits for it.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_sum: torch.Tensor
    loss_steps: int = 0
    step: int = 0
    epoch: int = 0
    kept: list[KeptWeights] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors and plain values, which torch loads with `weights_only=True`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loss_sum": self.loss_sum,
            "loss_steps": self.loss_steps,
            "step": self.step,
            "epoch": self.epoch,
            "kept": [vars(kept) for kept in self.kept],
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.loss_sum.copy_(content["loss_sum"])
        self.loss_steps = content["loss_steps"]
        self.step = content["step"]
        self.epoch = content["epoch"]
        self.kept = [KeptWeights(**kept) for kept in content["kept"]]

    @property
    def best(self) -> KeptWeights | None:
        """The epoch with the largest validation Dice, the earliest of equals; None before any was validated."""
        scored = [kept for kept in self.kept if kept.dice is not None]
        return max(scored, key=lambda kept: (kept.dice, -kept.epoch), default=None)

    def is_finite(self) -> bool:
        """Return whether every parameter, buffer and the running loss is finite; waits for the device."""
        tensors = [*self.model.parameters(), *self.model.buffers(), self.loss_sum]
        checks = [torch.isfinite(tensor.detach()).all() for tensor in tensors if tensor.is_floating_point()]
        return bool(torch.stack(checks).all())
