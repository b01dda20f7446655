"""The optimiser, its learning rate, and the durations of a recipe in steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from contrails.errors import RecipeError, nearest
from contrails.recipe.train import TrainSection

_BETA_2 = 0.999
"""Decay of the squared gradient in AdamW."""

_RISE = 0.3
"""Fraction of the steps in which the rate of one_cycle rises, as in torch."""


@dataclass(frozen=True)
class Course:
    """The length of training and warm-up in steps; the last epoch can be shorter than the others."""

    steps: int
    epochs: int
    warmup: int
    steps_per_epoch: int

    def end_of(self, epoch: int) -> int:
        """Return the number of steps before the end of epoch number `epoch` (from 0)."""
        return min((epoch + 1) * self.steps_per_epoch, self.steps)


def course_of(section: TrainSection, steps_per_epoch: int) -> Course:
    """Return the durations of a recipe in steps."""
    steps = section.steps if section.epochs is None else section.epochs * steps_per_epoch
    assert steps is not None  # the recipe has one of them
    warmup = section.warmup_steps
    if warmup is None:
        usual = 0.0 if section.schedule == "one_cycle" else 1.0
        warmup = round((usual if section.warmup_epochs is None else section.warmup_epochs) * steps_per_epoch)
    return Course(steps, -(-steps // steps_per_epoch), warmup, steps_per_epoch)


def build_optimizer(model: nn.Module, section: TrainSection) -> torch.optim.Optimizer:
    """Return AdamW or SGD; weight decay acts only on tensors with more than one axis, unless `decay_on` is "all"."""
    parameters, decay = list(model.parameters()), section.weight_decay
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": decay if section.decay_on == "all" else 0.0},
    ]
    # fused: one pass over memory per step, and no synchronisation with a scaler
    if section.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=section.lr, momentum=section.momentum, nesterov=section.nesterov, fused=True)
    return torch.optim.AdamW(groups, lr=section.lr, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, section: TrainSection, step: int, course: Course, rate: float) -> None:
    """Set the learning rate of step number `step` (from 0), and the momentum if the schedule varies it."""
    moved = momentum(section, step, course)
    for group in optimizer.param_groups:
        group["lr"] = rate
        if moved is not None and section.optimizer == "sgd":
            group["momentum"] = moved
        elif moved is not None:
            group["betas"] = (moved, _BETA_2)


def freeze(model: nn.Module, schedule: Mapping[str, int], epoch: int) -> None:
    """Freeze the modules whose number of epochs is not over, including their batch-norm statistics.

    Args:
        model: the model; names in `schedule` are below its attribute `model`.
        schedule: number of first epochs for which each module is frozen.
        epoch: the epoch that begins, from 0.

    Raises:
        RecipeError: the model has no such module.
    """
    # shorter names first: a nested module comes after the module that contains it, and overrides its setting
    for name in sorted(schedule, key=len):
        try:
            part = model.get_submodule(f"model.{name}")
        except AttributeError as error:
            names = (known for known, _ in model.named_modules() if known.count(".") < 4)
            known = {known.removeprefix("model.") for known in names if known.startswith("model.")}
            raise RecipeError(f"train.freeze.{name}: the model has no such module; {nearest(name, known)}") from error
        held = epoch < schedule[name]
        part.requires_grad_(not held)
        part.train(not held)


def learning_rate(section: TrainSection, step: int, course: Course, scores: Sequence[float] = ()) -> float:
    """Return the learning rate of step number `step` (from 0): linear warm-up, then the recipe's schedule.

    The rate is a function of the step, and for `plateau` of the validation Dice of the epochs so far, so that there is
    no scheduler state to save. `one_cycle` is that of Smith (2018) as in torch's OneCycleLR; `cyclical` is the triangle
    of Smith (2017), beginning at its peak; `plateau` is torch's ReduceLROnPlateau.
    """
    if step < course.warmup:
        return section.lr * (step + 1) / (course.warmup + 1)
    done, last = step - course.warmup, max(1, course.steps - course.warmup)
    peak, low = section.lr, section.min_lr
    match section.schedule:
        case "constant":
            return peak
        case "cosine":
            return _cosine(peak, low, done / last)
        case "one_cycle":
            return _one_cycle((peak / 25, peak, peak / 25e4), done, last)
        case "cyclical":
            phase = done / (section.cycle_epochs * course.steps_per_epoch) % 1
            return low + (peak - low) * abs(1 - 2 * phase)
        case "plateau":
            return peak * section.plateau_factor ** _plateaus(scores, section.plateau_patience)


def momentum(section: TrainSection, step: int, course: Course) -> float | None:
    """Return the momentum of a step of one_cycle, which falls while the rate rises; None to leave it unchanged."""
    if section.schedule != "one_cycle" or step < course.warmup:
        return None
    return _one_cycle((0.95, 0.85, 0.95), step - course.warmup, max(1, course.steps - course.warmup))


def _one_cycle(values: tuple[float, float, float], step: int, steps: int) -> float:
    """Return a value that follows cosines from the first value to the second, then to the third at the last step."""
    first, middle, last = values
    turn = _RISE * steps - 1
    if step <= turn:
        return _cosine(first, middle, step / turn)
    return _cosine(middle, last, (step - turn) / (steps - 1 - turn))


def epochs_without_gain(scores: Sequence[float]) -> int:
    """Return the number of epochs since the best validation Dice, since the first of them if several are equal."""
    return len(scores) - 1 - max(range(len(scores)), key=lambda epoch: (scores[epoch], -epoch)) if scores else 0


def _cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * progress))


def _plateaus(scores: Sequence[float], patience: int) -> int:
    """Return how many times the Dice did not improve for more than `patience` epochs."""
    count, bad, best = 0, 0, -math.inf
    for score in scores:
        best, bad = (score, 0) if score > best else (best, bad + 1)
        if bad > patience:
            count, bad = count + 1, 0
    return count
