"""The optimiser and its schedule; durations are turned into steps once, here."""

import math

import torch
from torch import nn

from contrails.config import TrainSection


def build_optimizer(model: nn.Module, section: TrainSection) -> torch.optim.Optimizer:
    """Return AdamW; weight decay acts on weights of more than one axis, not on biases and norms."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": section.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=section.lr)


def learning_rate(section: TrainSection, step: int, steps_per_epoch: int) -> float:
    """Return the rate of step number `step` (from 0): linear warm-up, then a half cosine to zero.

    A function of the step alone, so that there is no scheduler whose state could be lost.
    """
    warmup = round(section.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return section.lr * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, section.epochs * steps_per_epoch - warmup)
    return section.lr * 0.5 * (1 + math.cos(math.pi * progress))
