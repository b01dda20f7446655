"""Folds on a GPU: killed and resumed in the same bits, on several GPUs too; a full GPU; prediction as on the CPU."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeRun

from contrails.aggregate.members.predict import load_predictor
from contrails.cluster.check.drill import result_of
from contrails.cluster.outcomes import cause_of_exit
from contrails.dataset.store import open_dataset
from contrails.files import read_json
from contrails.models.weights import load_weights
from contrails.runs.folder import Run
from contrails.train.fold import train_fold

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]

TRAINING = """
import os, signal, sys
from pathlib import Path
import torch
from contrails.errors import ContrailsError
from contrails.runs.folder import Run
from contrails.train.fold import train_fold
from contrails.train.loop import Loop

last, how, memory = int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
original = Loop._step
def step(loop, batches):
    original(loop, batches)
    if loop.state.step == last:
        os.kill(os.getpid(), getattr(signal, how))
Loop._step = step
torch.cuda.set_per_process_memory_fraction(memory)
try:
    train_fold(Run(Path(sys.argv[1])).fold("0"))
except ContrailsError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def run_of(make_run: MakeRun, name: str, num_ranks: int = 1, model: dict[str, Any] | None = None, **train: Any) -> Run:
    run = make_run(
        name, model=model or {}, train={"epochs": 4, "log_every": 1, "ema_decay": 0.9, "swa_epochs": 1} | train
    )
    text = run.toml.read_text().replace('device = "cpu"', 'device = "cuda"')
    run.toml.write_text(text.replace("num_ranks = 1", f"num_ranks = {num_ranks}"))
    return run


def train(run: Run, last_step: int = -1, how: str = "SIGTERM", memory: float = 1.0) -> int:
    command = [sys.executable, "-c", TRAINING, str(run.path), str(last_step), how, str(memory)]
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, timeout=300, check=False).returncode


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_killed_fold_ends_in_the_same_bits(make_run: MakeRun, precision: str) -> None:
    undisturbed, run = (run_of(make_run, name, precision=precision) for name in ("undisturbed", "killed"))
    assert train(undisturbed) == 0
    assert train(run, 2) == 75
    assert train(run, 6, "SIGKILL") == -signal.SIGKILL
    assert train(run) == 0
    assert result_of(run.fold("0")) == result_of(undisturbed.fold("0"))
    assert "CUDA" in read_json(run.fold("0").attempt(1).job)["gpu"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cuda_graphs_give_the_bits_without_them_and_resume(make_run: MakeRun, precision: str) -> None:
    model = {"head_dropout": 0.3, "classifier": True, "heads": 2}
    keys: dict[str, Any] = {"precision": precision, "batch_size": 3, "drop_last": False}
    names = {"plain": False, "graphed": True, "killed": True}
    runs = {name: run_of(make_run, name, model=model, cuda_graph=on, **keys) for name, on in names.items()}
    for name in ("plain", "graphed"):
        assert train(runs[name]) == 0
    assert train(runs["killed"], 2) == 75
    assert train(runs["killed"], 7, "SIGKILL") == -signal.SIGKILL
    assert train(runs["killed"]) == 0
    assert result_of(runs["killed"].fold("0")) == result_of(runs["graphed"].fold("0"))
    # weights files hold the recipe, in which the option differs
    plain, graphed = (tensors_of(runs[name]) for name in ("plain", "graphed"))
    assert plain.keys() == graphed.keys()
    assert all(torch.equal(tensor, graphed[key]) for key, tensor in plain.items())
    rows = [result_of(runs[name].fold("0"))["rows"] for name in ("plain", "graphed")]
    assert rows[0] == rows[1]


def tensors_of(run: Run) -> dict[tuple[str, str], torch.Tensor]:
    """Return all tensors of a fold's weights, by file and name."""
    fold = run.fold("0")
    done = fold.read_done()
    assert done is not None
    files = {kind: load_weights(fold.weights / entry["file"])[0] for kind, entry in done["weights"].items()}
    return {(kind, name): tensor for kind, weights in files.items() for name, tensor in weights.items()}


def test_two_gpus_resume_in_the_same_bits(make_run: MakeRun) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"{torch.cuda.device_count()} CUDA device: two ranks need two")
    undisturbed, run = (run_of(make_run, name, 2, batch_size=4) for name in ("undisturbed", "killed"))
    assert train(undisturbed) == 0
    assert train(run, 1) == 75
    assert train(run, 3, "SIGKILL") == -signal.SIGKILL
    assert train(run) == 0
    assert result_of(run.fold("0")) == result_of(undisturbed.fold("0"))


def test_a_full_gpu_is_told(make_run: MakeRun) -> None:
    run = run_of(make_run, "full")
    code = train(run, memory=1e-5)
    assert (code, cause_of_exit(code)) == (11, "gpu_memory")
    reason = read_json(run.fold("0").attempt(1).state)["reason"]
    assert "fit in the GPU's memory" in reason
    assert "raise train.accumulate" in reason


@pytest.fixture(params=[("ieee", 1e-3), ("tf32", 1e-2)])
def most(request: pytest.FixtureRequest) -> Iterator[float]:
    """Let convolutions calculate in one of these ways, and return the largest difference that it makes."""
    convolutions: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = request.param[0]
    yield request.param[1]
    convolutions.fp32_precision = before


@pytest.mark.usefixtures("restore_process")
def test_prediction_is_that_of_the_cpu(make_run: MakeRun, tiny_data: Path, gpu: torch.device, most: float) -> None:
    fold = make_run().fold("0")
    train_fold(fold)
    done, dataset = fold.read_done(), open_dataset(tiny_data / "train.h5")
    assert done is not None
    predicted = []
    for device in (torch.device("cpu"), gpu):
        predict = load_predictor([fold.weights / done["weights"]["final"]["file"]], dataset, device)
        batches = predict(np.arange(dataset.num_records))
        predicted.append(np.concatenate([probabilities for _, probabilities in batches]) / 65_535)
    assert np.abs(predicted[0] - predicted[1]).max() <= most
