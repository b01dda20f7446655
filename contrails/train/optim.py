"""The optimiser and its learning rate; durations are turned into steps once, here."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from contrails.errors import RecipeError, nearest
from contrails.sections.train import TrainSection


def build_optimizer(model: nn.Module, section: TrainSection) -> torch.optim.Optimizer:
    """Return AdamW or SGD; weight decay acts on weights of more than one axis, not on biases and norms."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": section.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    # fused: one pass over memory a step, and no synchronisation with a scaler
    if section.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=section.lr, momentum=section.momentum, nesterov=section.nesterov, fused=True)
    return torch.optim.AdamW(groups, lr=section.lr, fused=True)


def freeze(model: nn.Module, schedule: Mapping[str, int], epoch: int) -> None:
    """Hold the parts whose epochs are not over yet, their batch norm included; a part of a part has its own number.

    Raises:
        RecipeError: the model has no such part.
    """
    for name in sorted(schedule, key=len):
        try:
            part = model.get_submodule(f"model.{name}")
        except AttributeError as error:
            names = (known for known, _ in model.named_modules() if known.count(".") < 4)
            known = {known.removeprefix("model.") for known in names if known.startswith("model.")}
            raise RecipeError(f"train.freeze.{name}: the model has no such part; {nearest(name, known)}") from error
        held = epoch < schedule[name]
        part.requires_grad_(not held)
        part.train(not held)


def learning_rate(section: TrainSection, step: int, steps_per_epoch: int, scores: Sequence[float] = ()) -> float:
    """Return the rate of step number `step` (from 0): linear warm-up, then the recipe's schedule.

    A function of the step, and for `plateau` of the epochs' validation Dice so far, so that there is no scheduler whose
    state could be lost. `one_cycle` is Smith's (2018) with the numbers of torch's OneCycleLR, `cyclical` his triangle
    (2017), which begins at its peak, `plateau` is ReduceLROnPlateau.
    """
    warmup = round(section.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return section.lr * (step + 1) / (warmup + 1)
    done, last = step - warmup, max(1, section.epochs * steps_per_epoch - warmup)
    progress, peak, low = done / last, section.lr, section.min_lr
    match section.schedule:
        case "constant":
            return peak
        case "cosine":
            return _cosine(peak, low, progress)
        case "one_cycle":
            rise = 0.3
            if progress < rise:
                return _cosine(peak / 25, peak, progress / rise)
            return _cosine(peak, peak / 25e4, (progress - rise) / (1 - rise))
        case "cyclical":
            phase = done / (section.cycle_epochs * steps_per_epoch) % 1
            return low + (peak - low) * abs(1 - 2 * phase)
        case "plateau":
            return peak * section.plateau_factor ** _plateaus(scores, section.plateau_patience)


def epochs_without_gain(scores: Sequence[float]) -> int:
    """Return how many epochs ago the best validation Dice was reached, by the first of equals."""
    return len(scores) - 1 - max(range(len(scores)), key=lambda epoch: (scores[epoch], -epoch)) if scores else 0


def _cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


def _plateaus(scores: Sequence[float], patience: int) -> int:
    """Return how often the Dice did not gain for more than `patience` epochs."""
    count, bad, best = 0, 0, -math.inf
    for score in scores:
        best, bad = (score, 0) if score > best else (best, bad + 1)
        if bad > patience:
            count, bad = count + 1, 0
    return count
