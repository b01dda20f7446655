"""Every feature of the trainer, interrupted: the same bits as undisturbed, and no state left out."""

import dataclasses
import functools
import itertools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from contrails.errors import Stopped
from contrails.files import read_json, read_json_lines, to_json, write_atomic
from contrails.recipe.augment import TEMPORAL, AugmentSection, Kind
from contrails.runs.folder import Fold, Run
from contrails.train.context import JobContext
from contrails.train.fold import train_fold
from contrails.train.loop import Loop
from contrails.train.saved.snapshot import load_snapshot
from contrails.train.saved.state import TrainState

MakeRun = Callable[..., Run]
pytestmark = pytest.mark.usefixtures("restore_process")

FEATURES: dict[str, dict[str, dict[str, Any]]] = {
    "averages": {
        "train": {"ema_decay": 0.9, "swa_epochs": 2, "epochs": 4, "schedule": "plateau", "plateau_patience": 0}
    },
    "pieces": {
        "train": {"accumulate": 2, "batch_size": 3, "drop_last": False, "optimizer": "sgd", "schedule": "cyclical"}
    },
    "bf16": {"train": {"precision": "bf16", "channels_last": True, "schedule": "one_cycle"}},
    "fp16": {"train": {"precision": "fp16", "grad_clip": 0}},
    "frozen": {"train": {"freeze": {"encoder": 1}, "early_stopping": 1, "epochs": 5}},
    "terms": {"loss": {"terms": ["bce", {"name": "dice", "over": "global"}, "lovasz_hinge"], "normalise": True}},
    "changes": {
        "augment": {
            name: {"probability": 0.6}
            for name, kind in AugmentSection()
            if isinstance(kind, Kind) and name not in TEMPORAL
        },
        "train": {"batch_size": 4, "accumulate": 2},
    },
    "merged frames": {
        # the tiny dataset has one frame: it stands for three
        "data": {"frames": [4, 4, 4]},
        "model": {"temporal": {"merge": "conv3d"}, "skip_dropout": 0.2, "head_bias": "rate"},
        "train": {"ema_decay": 0.9, "freeze": {"encoder": 2, "encoder.model.layer2": 1}},
    },
    "heads": {
        "data": {"frames": [4, 4]},
        "model": {
            "temporal": {"merge": "lstm", "levels": [3]},
            "heads": 2,
            "deep_supervision": 1,
            "classifier": True,
            "share": True,
            "logits": 2,
            "head_dropout": 0.1,
        },
        "loss": {"terms": [{"name": "bce", "head": 0}, {"name": "dice", "head": 1}], "gate": True},
    },
    "classifier": {"model": {"task": "classify", "head_bias": "rate"}},
    "steps": {"train": {"steps": 7, "warmup_steps": 2, "optimizer": "sgd", "decay_on": "all"}},
    "windows": {"data": {"crop": 32, "crop_positive": 0.5}, "train": {"positive_share": 0.5}},
}


def result(fold: Fold) -> dict[str, Any]:
    """What must not depend on interruptions: digests and scores of the weights, and every row of metrics."""
    done = fold.read_done()
    assert done is not None
    rows: dict[int, dict[str, Any]] = {}
    for attempt in fold.attempts():
        for row in read_json_lines(attempt.metrics):
            rows.setdefault(row["step"], {}).update(row)
    weights = {name: (entry["sha256"], entry["dice"]) for name, entry in done["weights"].items()}
    return {"weights": weights, "rows": rows, "step": done["step"]}


def set_after_a_step(monkeypatch: pytest.MonkeyPatch, clock: Path, seconds: float) -> None:
    """Have the first step set the walltime's end, which every poll then reads."""
    monkeypatch.setattr("contrails.train.stop._REREAD_S", 0.0)
    original = Loop._step

    def step(loop: Loop, batches: Any) -> None:
        original(loop, batches)
        if loop.state.step == 1:
            write_atomic(clock, to_json({"end": time.monotonic() + seconds}))

    monkeypatch.setattr(Loop, "_step", step)


def stop_after(monkeypatch: pytest.MonkeyPatch, num_steps: int) -> None:
    """Have every attempt stop itself after so many steps of its own."""
    original = Loop._step
    made = itertools.count(1)

    def step(loop: Loop, batches: Any) -> None:
        original(loop, batches)
        if next(made) == num_steps:
            loop.stop.reason = "SIGTERM"

    monkeypatch.setattr(Loop, "_step", step)


@pytest.mark.parametrize("name", FEATURES)
def test_interrupted_three_times_ends_in_the_same_bits(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    undisturbed = make_run("undisturbed", **FEATURES[name]).fold("0")
    train_fold(undisturbed)
    fold = make_run("interrupted", **FEATURES[name]).fold("0")
    for num_steps in (1, 2, 3):
        with monkeypatch.context() as patch:
            stop_after(patch, num_steps)
            with pytest.raises(Stopped):
                train_fold(fold)
        torch.manual_seed(num_steps)
    train_fold(fold)
    assert result(fold) == result(undisturbed)
    expected = {"final", "best"} | (
        {"ema", "swa"} if name == "averages" else {"ema"} if name == "merged frames" else set()
    )
    assert set(result(fold)["weights"]) == expected


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_model_resumes_in_the_same_bits(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """The first backend traces and differentiates as the default does, without its minute of a C++ compiler."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    folds = [make_run(name, train={"compile": True, "epochs": 2}).fold("0") for name in ("undisturbed", "interrupted")]
    train_fold(folds[0])
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Stopped):
            train_fold(folds[1])
    torch.compiler.reset()  # as in another process
    train_fold(folds[1])
    assert result(folds[0]) == result(folds[1])


def test_the_state_is_complete(make_run: MakeRun) -> None:
    terms = ["bce", {"name": "dice", "over": "global"}]
    train = {"ema_decay": 0.9, "swa_epochs": 1, "precision": "fp16"}
    fold = make_run(train=train, loss={"terms": terms}).fold("0")
    train_fold(fold)
    found = load_snapshot(fold)
    assert found is not None
    assert set(found[1]) == {field.name for field in dataclasses.fields(TrainState)}
    assert all(found[1][name] for name in ("model", "optimizer", "scaler", "ema", "swa", "loss", "scores", "kept"))
    assert found[1]["loss"]["mask.sums"].any()
    rows = read_json_lines(fold.attempt(1).metrics)
    assert all({"train/loss/bce", "train/loss/dice"} < set(row) for row in rows if "train/loss" in row)


def test_accumulation_is_one_large_batch(make_run: MakeRun) -> None:
    """Without batch norm's own statistics, pieces of a batch sum up to its gradient."""
    finals = []
    for pieces in (1, 4):
        frozen = {"accumulate": pieces, "batch_size": 4, "freeze": {"encoder": 9}, "epochs": 1, "optimizer": "sgd"}
        fold = make_run(f"pieces{pieces}", train=frozen | {"momentum": 0, "nesterov": False}).fold("0")
        train_fold(fold)
        rows = read_json_lines(fold.attempt(1).metrics)
        finals.append([row["train/loss"] for row in rows if "train/loss" in row])
    assert finals[0] == pytest.approx(finals[1], rel=0.05)


def test_a_frozen_encoder_does_not_change(make_run: MakeRun) -> None:
    fold = make_run(train={"freeze": {"encoder": 2}, "epochs": 3}, snapshot={"keep_last": 3}).fold("0")
    train_fold(fold)
    from contrails.models.weights import load_weights

    first, second, third = (load_weights(path)[0] for _, _, path in fold.all_weights())
    encoder = [name for name in first if name.startswith("model.encoder.")]
    assert all(torch.equal(first[name], second[name]) for name in encoder)
    assert not all(torch.equal(second[name], third[name]) for name in encoder)
    decoder = [name for name in first if name.startswith("model.decoder.") and name.endswith("weight")]
    assert decoder
    assert not any(torch.equal(first[name], second[name]) for name in decoder)


def test_early_stopping_ends_before_the_last_epoch(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    from contrails.metrics import Histogram

    scores = iter([0.3, 0.5, 0.4, 0.45, 0.6])
    monkeypatch.setattr(Histogram, "best", lambda self: (next(scores), 0.5))
    fold = make_run(train={"early_stopping": 2, "epochs": 9}).fold("0")
    train_fold(fold)
    done = fold.read_done()
    assert done is not None
    assert (done["epoch"], done["best_dice"]) == (4, 0.5)


def test_the_walltime_is_a_stop(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = tmp_path / "clock.json"
    set_after_a_step(monkeypatch, clock, 6)
    fold = make_run(train={"epochs": 10_000}).fold("0")
    with pytest.raises(Stopped, match=r"stopped at step \d+ \(walltime\)"):
        train_fold(fold, JobContext(clock=str(clock)))
    assert fold.all_snapshots()[0].step == read_json(fold.attempt(1).state)["step"] > 0


def test_an_extended_walltime_helps(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = tmp_path / "clock.json"
    write_atomic(clock, to_json({"end": time.monotonic() + 100}))
    set_after_a_step(monkeypatch, clock, 1000)
    monkeypatch.setattr("contrails.train.loop._SPARE_S", 500.0)  # what the first walltime does not have
    fold = make_run().fold("0")
    train_fold(fold, JobContext(clock=str(clock)))
    assert fold.done.exists()


def test_a_clock_that_jumps_stops_nothing(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = tmp_path / "clock.json"
    write_atomic(clock, to_json({"end": time.monotonic() + 1000}))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 1e8)
    fold = make_run().fold("0")
    train_fold(fold, JobContext(clock=str(clock)))
    assert fold.done.exists()


def test_a_stop_in_validation_is_a_stop(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = make_run("undisturbed").fold("0")
    train_fold(undisturbed)
    fold = make_run("stopped").fold("0")
    original = Loop._evaluate

    def evaluate_and_signal(loop: Loop, model: Any) -> Any:
        os.kill(os.getpid(), signal.SIGUSR2)
        return original(loop, model)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_evaluate", evaluate_and_signal)
        with pytest.raises(Stopped, match=r"stopped at step 4 \(SIGUSR2\)"):
            train_fold(fold)
    assert not any("val/dice" in row for row in read_json_lines(fold.attempt(1).metrics))
    train_fold(fold)
    assert result(fold) == result(undisturbed)


def test_a_stop_in_the_batch_norm_update_is_a_stop(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = make_run("undisturbed", train={"swa_epochs": 2}).fold("0")
    train_fold(undisturbed)
    fold = make_run("stopped", train={"swa_epochs": 2}).fold("0")
    original = Loop._training_inputs

    def inputs_and_signal(loop: Loop) -> Any:
        loop.stop.reason = "SIGTERM"
        return original(loop)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_training_inputs", inputs_and_signal)
        with pytest.raises(Stopped, match="stopped at step 12"):
            train_fold(fold)
    train_fold(fold)
    assert result(fold) == result(undisturbed)
