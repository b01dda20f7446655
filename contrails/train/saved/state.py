"""The mutable state of a training, in one object with one `state_dict`.

Only this state survives a kill. Random draws, the order of records and the learning rate are functions of the step and
of the scores so far, so the position in training is two integers.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from contrails.recipe.train import TrainSection
from contrails.train.objective import Objective
from contrails.train.optim import build_optimizer
from contrails.train.saved.averages import Average


@dataclass(frozen=True)
class KeptWeights:
    """A weights file: its epoch, name in the weights folder, SHA-256, best Dice, and the threshold with that Dice."""

    epoch: int
    file: str
    sha256: str
    dice: float | None
    threshold: float | None


@dataclass
class TrainState:
    """The mutable state of one fold.

    `step` counts optimiser steps, `epoch` validated epochs. `loss_sum / loss_steps` is the mean of the loss and its
    parts since the last row of metrics; `loss_smooth` is an exponential average of the loss. Both are float64 on the
    device, so that no step waits for them. `scores` holds the validation Dice of each epoch.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: Average | None
    swa: Average | None
    loss: Objective
    loss_sum: torch.Tensor
    loss_smooth: torch.Tensor
    loss_steps: int = 0
    step: int = 0
    epoch: int = 0
    scores: list[float] = field(default_factory=list)
    kept: list[KeptWeights] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors and plain values, which torch loads with `weights_only=True`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema and self.ema.state_dict(),
            "swa": self.swa and self.swa.state_dict(),
            "loss": self.loss.state_dict(),
            "loss_sum": self.loss_sum,
            "loss_smooth": self.loss_smooth,
            "loss_steps": self.loss_steps,
            "step": self.step,
            "epoch": self.epoch,
            "scores": list(self.scores),
            "kept": [vars(kept) for kept in self.kept],
        }

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Restore the state from the result of `state_dict`."""
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scaler.load_state_dict(content["scaler"])
        for average, saved in ((self.ema, content["ema"]), (self.swa, content["swa"])):
            if average is not None:
                average.load_state_dict(saved)
        self.loss.load_state_dict(content["loss"])
        self.loss_sum.copy_(content["loss_sum"])
        self.loss_smooth.copy_(content["loss_smooth"])
        self.loss_steps = content["loss_steps"]
        self.step = content["step"]
        self.epoch = content["epoch"]
        self.scores = list(content["scores"])
        self.kept = [KeptWeights(**kept) for kept in content["kept"]]

    @property
    def best(self) -> KeptWeights | None:
        """The weights with the largest validation Dice, the earliest of several; None if no weights have a Dice."""
        scored = [kept for kept in self.kept if kept.dice is not None]
        return max(scored, key=lambda kept: (kept.dice, -kept.epoch), default=None)


def new_state(model: nn.Module, loss: Objective, section: TrainSection, device: torch.device) -> TrainState:
    """Return the state before the first step."""
    return TrainState(
        model,
        build_optimizer(model, section),
        torch.amp.GradScaler(device.type, enabled=section.precision == "fp16"),
        Average(model) if section.ema_decay else None,
        Average(model) if section.swa_epochs else None,
        loss,
        torch.zeros(1 + len(loss.names), dtype=torch.float64, device=device),
        torch.zeros((), dtype=torch.float64, device=device),
    )
