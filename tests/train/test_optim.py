"""Learning rates against torch's own schedulers, and what the optimisers are given."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from contrails.recipe.train import TrainSection
from contrails.train.optim import build_optimizer, course_of, epochs_without_gain, learning_rate, set_rates

STEPS = 5
"""Steps an epoch."""


def section(**values: Any) -> TrainSection:
    return TrainSection.model_validate({"lr": 0.1, "warmup_epochs": 0, "epochs": 8} | values)


def rates(of: TrainSection) -> list[float]:
    course = course_of(of, STEPS)
    return [learning_rate(of, step, course) for step in range(course.steps)]


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


@pytest.mark.parametrize("length", [{"epochs": 10}, {"steps": 37}, {"epochs": 1}, {"steps": 1}, {"steps": 2}])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_one_cycle_is_that_of_torch(optimizer: str, length: dict[str, int]) -> None:
    of = TrainSection.model_validate({"schedule": "one_cycle", "lr": 0.1, "optimizer": optimizer} | length)
    course = course_of(of, STEPS)
    ours, theirs = (build_optimizer(nn.Linear(2, 2), of) for _ in range(2))
    scheduler = lr_scheduler.OneCycleLR(theirs, 0.1, total_steps=course.steps)
    for step in range(course.steps):
        set_rates(ours, of, step, course, learning_rate(of, step, course))
        for mine, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert mine["lr"] == pytest.approx(other["lr"], rel=0, abs=1e-9)
            assert mine.get("momentum", 0) == pytest.approx(other.get("momentum", 0), rel=0, abs=1e-7)
            assert mine.get("betas", ()) == pytest.approx(other.get("betas", ()), rel=0, abs=1e-7)
        theirs.step()
        if step + 1 < course.steps:
            scheduler.step()


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
        assert learning_rate(of, epoch * STEPS, course_of(of, STEPS), scores[:epoch]) == optimizer.param_groups[0]["lr"]
        scheduler.step(score)
    assert optimizer.param_groups[0]["lr"] < 0.1


@pytest.mark.parametrize("schedule", ["cosine", "cyclical", "plateau", "constant"])
def test_every_schedule_warms_up_step_by_step(schedule: str) -> None:
    found = rates(section(schedule=schedule, warmup_epochs=0.8))
    assert found[:4] == pytest.approx([0.02, 0.04, 0.06, 0.08])
    assert found[4:] == rates(section(schedule=schedule, epochs=8))[: len(found) - 4] or schedule != "constant"


@pytest.mark.parametrize("warmup", [{}, {"warmup_epochs": 1.0}, {"warmup_steps": STEPS}])
def test_one_epoch_of_warm_up_is_the_default_but_of_one_cycle(warmup: dict[str, float]) -> None:
    assert course_of(TrainSection.model_validate(warmup), STEPS).warmup == STEPS
    assert course_of(TrainSection(schedule="one_cycle"), STEPS).warmup == 0
    assert TrainSection(warmup_epochs=1.0) == TrainSection()


def test_durations_in_steps_hold_whatever_the_size_of_the_fold() -> None:
    of = TrainSection(steps=17, warmup_steps=3, epochs=99)
    for per_epoch, epochs, ends in ((5, 4, [5, 10, 15, 17]), (17, 1, [17]), (40, 1, [17])):
        course = course_of(of, per_epoch)
        assert (course.steps, course.warmup, course.epochs) == (17, 3, epochs)
        assert [course.end_of(epoch) for epoch in range(epochs)] == ends
        assert learning_rate(of, 3, course) == of.lr


def test_weight_decay_can_act_on_all_parameters() -> None:
    optimizer = build_optimizer(nn.BatchNorm2d(4), section(weight_decay=0.3, decay_on="all"))
    assert {group["weight_decay"] for group in optimizer.param_groups if group["params"]} == {0.3}


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
