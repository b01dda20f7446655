"""Training of a fold as a job does it: to the end, stopped and continued, killed and continued, on bad input."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contrails.dataset.store import open_dataset
from contrails.errors import DataError, NodeError, RecipeError, Stopped
from contrails.files import read_json, read_json_lines, sha256
from contrails.folds.filelists import read_filelist
from contrails.models.weights import load_weights
from contrails.runs.folder import Fold, Run
from contrails.train import fold as fold_module
from contrails.train.context import JobContext
from contrails.train.fold import train_fold
from contrails.train.fold_data import training_rows
from contrails.train.loop import Loop

MakeRun = Callable[..., Run]
pytestmark = pytest.mark.usefixtures("restore_process")

JOB = JobContext(scheduler="local", job_id="1")


def result(fold: Fold) -> dict[str, str]:
    """The digests of a finished fold's weights: equal bits are equal digests."""
    done = fold.read_done()
    assert done is not None
    for entry in done["weights"].values():
        assert sha256(fold.weights / entry["file"]) == entry["sha256"]
    return {name: entry["sha256"] for name, entry in done["weights"].items()}


def metrics(fold: Fold) -> dict[int, dict[str, Any]]:
    rows: dict[int, dict[str, Any]] = {}
    for attempt in fold.attempts():
        for row in read_json_lines(attempt.metrics):
            rows.setdefault(row["step"], {}).update(row)
    return rows


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Send this process SIGTERM when `step` steps were made; once."""
    sent: list[int] = []
    original = Loop._step

    def step_and_signal(loop: Loop, batch: Any) -> None:
        original(loop, batch)
        if loop.state.step == step and not sent:
            sent.append(step)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Loop, "_step", step_and_signal)


def test_a_fold_trains_to_its_end(make_run: MakeRun) -> None:
    fold = make_run().fold("0")
    train_fold(fold, JOB)
    done = fold.read_done()
    assert done is not None
    assert (done["attempt"], done["step"], done["epoch"]) == (1, 12, 3)
    rows = metrics(fold)
    assert sorted(rows) == [2, 4, 6, 8, 10, 12]
    assert {"val/dice", "val/loss", "train/loss", "train/lr"} <= set(rows[4])
    assert read_json(fold.attempt(1).state)["status"] == "done"
    tensors, about = load_weights(fold.weights / done["weights"]["best"]["file"])
    assert about["dice"] == done["best_dice"] == max(row["val/dice"] for row in rows.values() if "val/dice" in row)
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


def test_a_finished_fold_is_left_alone(make_run: MakeRun) -> None:
    fold = make_run().fold("1")
    train_fold(fold, JOB)
    before = fold.done.read_bytes()
    train_fold(fold, JOB)
    assert len(fold.attempts()) == 1
    assert fold.done.read_bytes() == before


@pytest.mark.parametrize("step", [1, 4, 7])
def test_stopped_and_continued_ends_in_the_same_bits(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    undisturbed = make_run("undisturbed").fold("0")
    train_fold(undisturbed, JOB)
    fold = make_run("stopped").fold("0")
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Stopped, match=rf"stopped at step {step} \(SIGTERM\)"):
            train_fold(fold, JOB)
    assert read_json(fold.attempt(1).state)["status"] == "stopped"
    assert fold.all_snapshots()[0].step == step
    torch.manual_seed(999)  # whatever ran before must not matter
    train_fold(fold, JOB)
    assert result(fold) == result(undisturbed)
    assert metrics(fold) == metrics(undisturbed)


def test_a_kill_at_any_moment_ends_in_the_same_bits(make_run: MakeRun) -> None:
    undisturbed = make_run("undisturbed").fold("0")
    train_fold(undisturbed, JOB)
    run = make_run("killed")
    fold, kills = run.fold("0"), 0
    while not fold.done.exists():
        # each attempt may make 3 more steps than the one before, then SIGKILL, with no chance to save
        process = subprocess.run([sys.executable, "-c", _KILLED, str(run.path), str(3 + 3 * kills)], check=False)
        assert process.returncode in (0, -signal.SIGKILL)
        kills += process.returncode != 0
    assert kills >= 2
    assert result(fold) == result(undisturbed)


_KILLED = """
import os, signal, sys
from pathlib import Path
from contrails.runs.folder import Run
from contrails.train.fold import train_fold
from contrails.train.loop import Loop

original, left = Loop._step, [int(sys.argv[2])]
def step(loop, batch):
    original(loop, batch)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
Loop._step = step
train_fold(Run(Path(sys.argv[1])).fold("0"))
"""


def test_all_trains_on_every_record_and_has_no_score(make_run: MakeRun) -> None:
    fold = make_run().fold("all")
    train_fold(fold, JOB)
    done = fold.read_done()
    assert done is not None
    assert done["step"] == 18
    assert done["best_dice"] is None
    assert set(done["weights"]) == {"final"}


def test_overfit_uses_the_same_records_twice_positive_ones_first(make_run: MakeRun) -> None:
    run = make_run(data={"overfit": 3})
    config = run.read_config()
    dataset = open_dataset(config.recipe.data.dataset)
    training, validation = training_rows(dataset, read_filelist(config.recipe.data.filelist), "0", config.recipe)
    assert np.array_equal(training, validation)
    assert len(training) == 3
    assert all((dataset.votes[row] * 2 > dataset.annotators[row]).any() for row in training)


def test_positives_only_validates_on_all(make_run: MakeRun) -> None:
    config = make_run(data={"positives_only": True}).read_config()
    dataset, filelist = open_dataset(config.recipe.data.dataset), read_filelist(config.recipe.data.filelist)
    training, validation = training_rows(dataset, filelist, "0", config.recipe)
    of_the_fold = dataset.rows(filelist.training("0"))
    assert np.array_equal(training, of_the_fold[dataset.positive_pixels(of_the_fold) > 0])
    assert 0 < len(training) < len(of_the_fold)
    assert np.array_equal(validation, dataset.rows(filelist.validation("0")))


def test_only_recent_and_best_weights_stay(make_run: MakeRun) -> None:
    fold = make_run(train={"epochs": 6}, snapshot={"keep_last": 1, "keep_best": 1}).fold("0")
    train_fold(fold, JOB)
    done = fold.read_done()
    assert done is not None
    names = {entry["file"] for entry in done["weights"].values()}
    assert {path.name for _, _, path in fold.all_weights()} == names


def test_a_gpu_that_is_not_there_is_a_node_error(make_run: MakeRun) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    run = make_run()
    run.toml.write_text(run.toml.read_text().replace('device = "cpu"', 'device = "cuda"'))
    with pytest.raises(NodeError, match="torch finds none"):
        train_fold(run.fold("0"), JOB)


def test_other_data_than_the_run_was_made_for_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    config = run.read_config()
    other = tmp_path / "other.csv"
    other.write_text(config.recipe.data.filelist.read_text().replace("# contrails", "# Contrails"))
    run.toml.write_text(run.toml.read_text().replace(str(config.recipe.data.filelist), str(other)))
    with pytest.raises(DataError, match=r"file list .* is not the one this run was made for"):
        train_fold(run.fold("0"), JOB)


def test_runs_need_no_wandb(make_run: MakeRun) -> None:
    run: Run = make_run()
    code = (
        "import sys; from pathlib import Path; from contrails.runs.folder import Run; "
        "from contrails.train.fold import train_fold; "
        "train_fold(Run(Path(sys.argv[1])).fold('0')); assert 'wandb' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(run.path)], check=True)


def test_statistics_of_batch_norm_that_do_not_fit_are_told(make_run: MakeRun, caplog: pytest.LogCaptureFixture) -> None:
    rough = {"epochs": 1, "batch_size": 2, "lr": 0.1}
    train_fold(make_run("batch", train=rough).fold("0"))
    (told,) = [line for line in caplog.messages if "batch-norm" in line]
    assert re.match(
        r"the validation loss is 19\.\d while the training loss is 0\.\d+: .* from pieces of 2 records", told
    )
    assert "set model.norm = 'group' and model.encoder_norm = 'group'" in told
    assert "the warm-up takes all of the 4 steps, so that train.lr is not reached" in " ".join(caplog.messages)
    caplog.clear()
    group = {"norm": "group", "encoder_norm": "group"}
    train_fold(make_run("group", train=rough | {"warmup_epochs": 0}, model=group).fold("0"))
    assert not [line for line in caplog.messages if "batch-norm" in line or "warm-up" in line]


@pytest.mark.parametrize(
    ("train", "step"),
    [({"batch_size": 7, "drop_last": False}, 1), ({"batch_size": 32, "accumulate": 8}, 8)],
)
def test_a_piece_too_small_for_batch_norm_is_told_before_the_first_step(
    make_run: MakeRun, train: dict[str, Any], step: int
) -> None:
    fold = make_run(train=train, model={"architecture": "DeepLabV3Plus", "decoder_channels": (16,)}).fold("0")
    with pytest.raises(RecipeError, match=f"at least 2 records in a piece, found .* which make a step of {step}; "):
        train_fold(fold)
    assert not fold.attempt(1).metrics.exists()


def test_a_gpu_that_runs_no_kernel_is_a_fault_of_the_node(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "Tesla V100")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (7, 0))
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: ["sm_75", "sm_90"])
    for where in ("contrails.train.loop.Loop.run", "contrails.train.fold.build_model"):
        fold = make_run(where.rpartition(".")[2]).fold("0")
        with monkeypatch.context() as patch:
            patch.setattr(where, fails)
            with pytest.raises(
                NodeError, match="has the compute capability sm_70, for which this torch has no kernels"
            ):
                train_fold(fold)
        state = read_json(fold.attempt(1).state)
        assert (state["status"], "sm_75, sm_90" in state["reason"]) == ("failed", True)


def test_the_driver_is_in_the_record_of_an_attempt(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(train={"epochs": 1})
    config = run.read_config()
    on_gpu = config.model_copy(update={"compute": config.compute.model_copy(update={"device": "cuda"})})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "A100")
    for driver, expected in (("570.86.15", {"driver": "570.86.15"}), (None, {})):
        monkeypatch.setattr("contrails.train.fold.driver_version", lambda driver=driver: driver)
        assert fold_module._gpu(on_gpu) == {"gpu": f"A100, CUDA {torch.version.cuda}"} | expected
    assert fold_module._gpu(config) == {"gpu": None}
