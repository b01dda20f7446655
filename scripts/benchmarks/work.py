"""What benchmarks of training share: records, recipes, runs, folds that train in processes, and steps on one batch."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from torch import nn

from contrails.cluster.schedulers.sites import num_cores
from contrails.dataset.pack import pack
from contrails.dataset.store import open_dataset
from contrails.errors import ContrailsError
from contrails.files import read_hint, read_json, sha256, to_json, write_atomic
from contrails.folds.filelists import ALWAYS_TRAINED, FileList, read_filelist, write_filelist
from contrails.inputs.batches import Batch
from contrails.inputs.composites import channels_of
from contrails.models.build import build_model
from contrails.models.outputs import Outputs
from contrails.models.segmenter import autocast
from contrails.processes import end_with
from contrails.recipe.recipe import Recipe, load_recipe, to_toml
from contrails.runs.config import ComputeSection, DataIdentity, RunConfig
from contrails.runs.folder import Fold, Run
from contrails.sources.goes import make_plan
from contrails.synthetic.goes import Parameters, make_dataset
from contrails.train.context import JobContext
from contrails.train.fold import train_fold
from contrails.train.graphs import GraphedForward
from contrails.train.objective import Objective
from contrails.train.optim import build_optimizer

JOBS = Path(__file__).parents[2] / "jobs"
NUM_FOLDS = 5
FORK = multiprocessing.get_context("fork")
"""Processes start in milliseconds, as everything is imported; who forks must not have used a GPU."""

_TINY = ("model.encoder=tu-test_resnet", "model.encoder_depth=3", "model.decoder_channels=[16, 8, 8]")
_GOES = [f"b{band:02d}" for band in range(8, 17)]


@dataclass(frozen=True)
class Bench:
    """Where a section measures: its device, its folder, the folder of the records, and from when to when it may run."""

    device: torch.device
    folder: Path
    data: Path
    begin: float
    end: float

    @property
    def is_tiny(self) -> bool:
        """Whether this only tries the script, on a CPU."""
        return self.device.type == "cpu"

    @property
    def seconds(self) -> float:
        """Time of the section."""
        return self.end - self.begin

    @property
    def is_late(self) -> bool:
        """Whether so little of the section's time is left that nothing new is to begin."""
        return time.monotonic() > self.end - 0.1 * self.seconds

    def synchronize(self) -> None:
        """Wait until the device has done what was asked of it."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def recipe(self, name: str, *overrides: str) -> Recipe:
        """Return a recipe of `jobs/` for the records here, with random weights; on a CPU its model is a tiny one."""
        tiny = (*_TINY, "data.size=", "train.batch_size=2", "train.log_every=2") if self.is_tiny else ()
        data = (f"data.dataset={self.data / 'train.h5'}", f"data.filelist={self.data / 'folds.csv'}")
        return load_recipe(JOBS / f"{name}.toml", ("model.pretrained=", *data, *tiny, *overrides))


def make_records(folder: Path, num_trained: int, num_validated: int, side: int) -> None:
    """Make a dataset of a few drawn records that recur, and a file list of five folds.

    Every fold trains on `num_trained` records at least, and validates on `num_validated` of its own.
    """
    make_dataset(folder / "drawn", Parameters(train=8, validation=1, test=1, size=side, seed=0))
    drawn = read_json(folder / "drawn" / "train_metadata.json")
    count = num_trained + NUM_FOLDS * num_validated
    entries = [drawn[index % len(drawn)] | {"record_id": f"{index:06d}"} for index in range(count)]
    for index, entry in enumerate(entries):
        record = folder / "raw" / "train" / entry["record_id"]
        record.mkdir(parents=True)
        for file in (folder / "drawn" / "train" / drawn[index % len(drawn)]["record_id"]).iterdir():
            os.link(file, record / file.name)
    write_atomic(folder / "raw" / "train_metadata.json", to_json(entries))
    pack(make_plan(folder / "raw", "train", (11, 14, 15), (4,)), folder / "train.h5", min(8, num_cores()))
    dataset = open_dataset(folder / "train.h5")
    folds = tuple(ALWAYS_TRAINED if index < num_trained else index % NUM_FOLDS for index in range(count))
    write_filelist(folder / "folds.csv", FileList(dataset.record_ids, dataset.groups, folds), "scripts/bench gpu")


def new_run(path: Path, recipe: Recipe, device: str, num_threads: int) -> Run:
    """Create a run that trains on a device of this machine."""
    config = RunConfig(
        recipe=recipe,
        compute=ComputeSection(device=device, num_threads=num_threads),
        data=DataIdentity(
            dataset=open_dataset(recipe.data.dataset).fingerprint,
            filelist=sha256(recipe.data.filelist),
            num_folds=read_filelist(recipe.data.filelist).num_folds,
        ),
        site={"name": "local"},
        code="",
    )
    run = Run(path)
    run.create_folder()
    write_atomic(run.toml, to_toml(config))
    return run


def start(what: Callable[..., None], *arguments: object) -> BaseProcess:
    """Call a function in a process of its own, which ends when this one does."""
    process = FORK.Process(target=_called, args=(os.getpid(), what, arguments))
    process.start()
    return process


def _called(parent_pid: int, what: Callable[..., None], arguments: tuple[object, ...]) -> None:
    end_with(parent_pid, signal.SIGKILL)
    try:
        what(*arguments)
    except ContrailsError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def start_fold(fold: Fold) -> BaseProcess:
    """Train a fold in a process of its own, as a job does; its output goes to the attempt's logs."""
    fold.path.mkdir(parents=True, exist_ok=True)
    return start(train_fold, fold, JobContext(redirect=True))


def require_done(fold: Fold) -> None:
    """Check that a fold has finished.

    Raises:
        RuntimeError: it has not; the message is the reason that it gave.
    """
    if not fold.done.exists():
        attempts = fold.attempts()
        raise RuntimeError(read_hint(attempts[-1].state).get("reason") if attempts else "no attempt was made")


def wait_until(condition: Callable[[], object], *processes: BaseProcess) -> bool:
    """Wait until a condition holds, as long as all processes live; return whether it does."""
    while not condition():
        if not all(process.is_alive() for process in processes):
            return bool(condition())
        time.sleep(0.02)
    return True


def make_deterministic() -> None:
    """Set this process to deterministic kernels, as training does (see `contrails.train.fold`)."""
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def random_batch(recipe: Recipe, count: int, side: int, device: torch.device) -> Batch:
    """Return a batch of random records for a recipe, the same in every process."""
    composite, frames = recipe.data.composite, len(recipe.data.frames)
    channels = len(channels_of(recipe.data, _GOES)) if isinstance(composite, str) else len(composite)
    is_stacked = recipe.model.temporal.merge == "channels"
    shape = (count, max(frames, 1) * channels) if is_stacked else (count, frames, channels)
    chance = torch.Generator().manual_seed(0)
    inputs = torch.randn(*shape, side, side, generator=chance).to(device)
    target = (torch.rand(count, side, side, generator=chance) > 0.9).float().to(device)
    return Batch(np.arange(count), inputs, target, torch.ones_like(target, dtype=torch.bool))


class Step:
    """A step of training in plain PyTorch, with the model, loss, precision, layout and optimiser of a recipe."""

    def __init__(self, recipe: Recipe, num_channels: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.recipe, self.section, self.device = recipe, recipe.train, device
        self.model = build_model(recipe, num_channels).to(device).train()
        if self.section.channels_last:
            self.model.channels_last()
        self.run = torch.compile(self.model) if self.section.compile else self.model
        graphed = GraphedForward(self._forward, self.model, recipe.train.batch_size)
        self.forward = graphed if self.section.cuda_graph else self._forward
        self.objective = Objective(recipe, lambda: 0.1).to(device)
        self.optimizer = build_optimizer(self.model, self.section)

    def gradients(self, batch: Batch) -> torch.Tensor:
        """Compute the gradients of a batch; return its loss."""
        inputs = batch.inputs
        if self.section.channels_last and inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        loss: torch.Tensor = self.objective(self.forward(inputs), batch)[0]
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def _forward(self, inputs: torch.Tensor) -> Outputs:
        with autocast(self.device, self.section.precision):
            outputs: Outputs = self.run(inputs)
            return outputs

    def __call__(self, batch: Batch) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.gradients(batch)
        nn.utils.clip_grad_norm_(self.model.parameters(), self.section.grad_clip or float("inf"))
        self.optimizer.step()
