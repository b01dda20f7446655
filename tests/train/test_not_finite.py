"""What is not finite is told for what it is: a step, a validation, an average, or the machine."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from contrails.dataset.store import open_dataset
from contrails.errors import NodeError, Stopped, TrainingError
from contrails.files import read_json
from contrails.folds.filelists import read_filelist
from contrails.runs.folder import Run
from contrails.train.fold import train_fold
from contrails.train.loop import Loop

from dataset_edits import set_row

MakeRun = Callable[..., Run]
pytestmark = pytest.mark.usefixtures("restore_process")

HOT = 32_000
"""Counts of a pixel of 593 K."""

WARM = {"composite": ["(b14 - 273.15) * 1000"]}
"""A channel that is beyond fp16 for hot pixels alone."""


@pytest.fixture
def hot(tiny_data: Path, tmp_path: Path) -> tuple[Path, list[str]]:
    """A dataset with two hot records, which fold 0 validates on and which are as they were written; and their names."""
    path = tmp_path / "hot.h5"
    shutil.copy(tiny_data / "train.h5", path)
    dataset = open_dataset(path)
    named = list(read_filelist(tiny_data / "three.csv").validation("0"))
    for row in range(dataset.num_records):
        name = dataset.record_ids[row]
        set_row(path, "bands", row, HOT if name in named[1:3] else dataset.bands[row] // 100, digest=True)
    return path, named[1:3]


@pytest.mark.parametrize("every_min", [10, 1e-9], ids=["snapshots of epochs", "snapshots of steps"])
def test_logits_that_overflow_in_validation_alone(
    make_run: MakeRun, hot: tuple[Path, list[str]], every_min: float
) -> None:
    path, records = hot
    tables: dict[str, Any] = {"data": WARM | {"dataset": str(path)}, "snapshot": {"every_min": every_min}}
    fold = make_run("fp16", train={"precision": "fp16"}, **tables).fold("0")
    with pytest.raises(TrainingError) as found:
        train_fold(fold)
    said = str(found.value)
    assert f"not finite for 2 of 4 records ({', '.join(records)}), in the validation of epoch 1 after step 4" in said
    assert "it is finite in fp32, and the largest fp16 is 6.55e+04: set train.precision to 'bf16'" in said
    assert "node" not in said
    assert read_json(fold.attempt(1).state)["reason"] == f"TrainingError: {said}"
    assert not fold.attempt(1).bad_batch.exists()
    train_fold(make_run("bf16", train={"precision": "bf16"}, **tables).fold("0"))  # the advice helps


def test_a_loss_that_is_not_finite_ends_the_fold_with_a_reason(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = make_run().fold("0")
    original = Loop._step

    def poisoned(loop: Loop, batch: Any) -> None:
        original(loop, batch)
        if loop.state.step == 6:
            with torch.no_grad():
                next(loop.state.model.parameters()).fill_(float("nan"))

    monkeypatch.setattr(Loop, "_step", poisoned)
    with pytest.raises(TrainingError, match=r"it began in step 5, with the records 10.*lower train.lr"):
        train_fold(fold)
    state = read_json(fold.attempt(1).state)
    assert state["status"] == "failed"
    assert "it began in step 5" in state["reason"]
    batch = safetensors.torch.load_file(fold.attempt(1).bad_batch)
    assert {name: tensor.shape for name, tensor in batch.items()} == {
        "inputs": (2, 3, 32, 32), "target": (2, 32, 32), "valid": (2, 32, 32)
    }  # fmt: skip
    assert fold.all_snapshots()[0].step == 4


def explode(loop: Loop) -> None:
    """Make finite weights whose output is not."""
    with torch.no_grad():
        for parameter in loop.state.model.parameters():
            parameter.fill_(1e30)


def test_weights_that_are_too_large_for_any_precision(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Loop._step

    def step(loop: Loop, batches: Any) -> None:
        original(loop, batches)
        if loop.state.step == 8:
            explode(loop)

    monkeypatch.setattr(Loop, "_step", step)
    with pytest.raises(TrainingError, match=r"in the validation of epoch 2 after step 8, .*too large: lower train.lr"):
        train_fold(make_run().fold("0"))


@pytest.mark.parametrize("deterministic", [True, False])
def test_what_is_not_finite_once_is_the_machine(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    original, poisoned = Loop._step, list[int]()

    def step(loop: Loop, batches: Any) -> None:
        original(loop, batches)
        if loop.state.step == 7 and not poisoned:
            poisoned.append(7)
            next(loop.state.model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(Loop, "_step", step)
    run = make_run(train={"deterministic": deterministic})
    expected, what = (
        (NodeError, "this node is at fault") if deterministic else (TrainingError, "without deterministic kernels")
    )
    with pytest.raises(expected, match=f"near step 8, but finite when the training was repeated from step 4: .*{what}"):
        train_fold(run.fold("0"))
    train_fold(run.fold("0"))  # as the next attempt does


def test_the_same_steps_are_repeated_whatever_lies_between_them(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs, their scores and frozen parts are repeated too, where the snapshot before is older than an epoch."""
    states: list[dict[str, Any]] = []
    original = Loop._step

    def step(loop: Loop, batches: Any) -> None:
        original(loop, batches)
        if loop.state.step == 11:
            states.append({name: tensor.clone() for name, tensor in loop.state.model.state_dict().items()})
            next(loop.state.model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(Loop, "_step", step)
    monkeypatch.setattr("contrails.train.saved.snapshot.save_snapshot", lambda *_: None)  # a disk that takes none
    train = {"schedule": "plateau", "plateau_patience": 0, "freeze": {"encoder": 1}, "swa_epochs": 2}
    with pytest.raises(TrainingError, match="it began in step 10"):
        train_fold(make_run(train=train).fold("0"))
    first, again = states
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize(("key", "value"), [("ema_decay", 0.9), ("swa_epochs", 2)])
def test_an_average_is_named(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, key: str, value: float) -> None:
    kind, original = key[:3], Loop._averaged

    def averaged(loop: Loop, name: str, average: Any) -> Any:
        for each, tensor in average.tensors.items():
            if tensor.is_floating_point() and "running" not in each:
                tensor.fill_(1e30)
        return original(loop, name, average)

    monkeypatch.setattr(Loop, "_averaged", averaged)
    fold = make_run(train={key: value}).fold("0")
    with pytest.raises(TrainingError) as found:
        train_fold(fold)
    said = str(found.value)
    assert f"in the validation of the {kind.upper()} weights after step 12, while the loss and the weights" in said
    assert f"or leave out train.{key}, and submit under a new --name" in said
    statistics = "the SWA weights with their new batch-norm statistics are not finite"
    assert (statistics if kind == "swa" else "the model's output is not finite for 4 of 4 records") in said
    assert not fold.done.exists()


def test_a_gradient_that_overflows_at_every_step_is_told(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler of fp16 leaves such steps out: nothing is learnt, and loss and weights stay finite."""
    original = Loop._loss

    def loss(loop: Loop, batch: Any) -> Any:
        total, parts = original(loop, batch)
        total.register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[no-untyped-call]
        return total, parts

    monkeypatch.setattr(Loop, "_loss", loss)
    fold = make_run(train={"precision": "fp16", "epochs": 4, "batch_size": 1, "log_every": 1}).fold("0")
    with pytest.raises(TrainingError, match=r"overflows in fp16 at every step near step 31, .* to 'bf16', or lower"):
        train_fold(fold)


def test_a_stop_ends_the_search_at_once(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original, made = Loop._step, list[int]()

    def step(loop: Loop, batches: Any) -> None:
        original(loop, batches)
        made.append(loop.state.step)
        if made.count(6) == 1 and loop.state.step == 8:
            explode(loop)
        if made.count(6) == 2:
            loop.stop.reason = "SIGTERM"

    monkeypatch.setattr(Loop, "_step", step)
    fold = make_run("stopped").fold("0")
    with caplog.at_level(logging.WARNING), pytest.raises(Stopped, match=r"resume \S+stopped`"):
        train_fold(fold)
    assert "training again from step 4 to find the cause" in caplog.text
    assert made == [1, 2, 3, 4, 5, 6, 7, 8, 5, 6]
    assert fold.all_snapshots()[0].step == 4
