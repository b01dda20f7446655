"""Learning rates against torch's own schedulers, and what the optimisers are given."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from contrails.sections.train import TrainSection
from contrails.train.optim import build_optimizer, epochs_without_gain, learning_rate

STEPS = 5
"""Steps an epoch."""


def section(**values: Any) -> TrainSection:
    return TrainSection.model_validate({"lr": 0.1, "warmup_epochs": 0, "epochs": 8} | values)


def rates(of: TrainSection) -> list[float]:
    return [learning_rate(of, step, STEPS) for step in range(of.epochs * STEPS)]


def torch_rates(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], count: int) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler, found = make(optimizer), []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler.step()
    return found


def test_cosine_is_that_of_torch() -> None:
    expected = torch_rates(lambda o: lr_scheduler.CosineAnnealingLR(o, 8 * STEPS, eta_min=0.01), 8 * STEPS)
    assert rates(section(min_lr=0.01)) == pytest.approx(expected)


def test_one_cycle_is_that_of_torch() -> None:
    # torch reaches its last rate with the last step, ours with the one after
    expected = torch_rates(lambda o: lr_scheduler.OneCycleLR(o, 0.1, 10 * STEPS + 1, cycle_momentum=False), 10 * STEPS)
    assert rates(section(schedule="one_cycle", epochs=10)) == pytest.approx(expected, rel=0.12, abs=1e-4)
    found = rates(section(schedule="one_cycle", epochs=10))
    assert (found[0], max(found), found.index(max(found))) == pytest.approx((0.1 / 25, 0.1, 15))


def test_cyclical_is_the_triangle_of_torch_from_its_peak() -> None:
    of = section(schedule="cyclical", cycle_epochs=4, min_lr=0.02)
    cycle = lambda o: lr_scheduler.CyclicLR(o, 0.02, 0.1, step_size_up=2 * STEPS, cycle_momentum=False)  # noqa: E731
    assert rates(of) == pytest.approx(torch_rates(cycle, 10 * STEPS)[2 * STEPS :])


def test_plateau_is_that_of_torch() -> None:
    scores = [0.1, 0.3, 0.2, 0.3, 0.25, 0.1, 0.4, 0.4, 0.3, 0.2, 0.1, 0.1, 0.0]
    of = section(schedule="plateau", plateau_patience=2, plateau_factor=0.5, epochs=20)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, "max", factor=0.5, patience=2, threshold=0)
    for epoch, score in enumerate(scores):
        assert learning_rate(of, epoch * STEPS, STEPS, scores[:epoch]) == optimizer.param_groups[0]["lr"]
        scheduler.step(score)
    assert optimizer.param_groups[0]["lr"] < 0.1


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle", "cyclical", "plateau", "constant"])
def test_every_schedule_warms_up_step_by_step(schedule: str) -> None:
    found = rates(section(schedule=schedule, warmup_epochs=0.8))
    assert found[:4] == pytest.approx([0.02, 0.04, 0.06, 0.08])
    assert found[4:] == rates(section(schedule=schedule, epochs=8))[: len(found) - 4] or schedule != "constant"


def test_norms_and_biases_have_no_weight_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for name, kind in (("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)):
        optimizer = build_optimizer(model, section(optimizer=name, weight_decay=0.3, momentum=0.8))
        assert isinstance(optimizer, kind)
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
        assert [len(group["params"]) for group in optimizer.param_groups] == [1, 3]
        assert name == "adamw" or (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.8, True)


@pytest.mark.parametrize(("scores", "expected"), [([], 0), ([0.1], 0), ([0.1, 0.2], 0), ([0.2, 0.2, 0.1], 2)])
def test_epochs_without_gain_count_from_the_first_best(scores: list[float], expected: int) -> None:
    assert epochs_without_gain(scores) == expected
