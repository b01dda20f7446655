"""The training loop beside a bare one of the same model, loss and optimiser, and beside Lightning where it is.

All of them take the same batches from the same pipeline; what that costs is measured by `scripts/bench data`.
"""

import copy
import importlib.util
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from table import Result, show
from torch import nn
from work import new_run

from contrails.cluster.check.drill import make_data
from contrails.cluster.queue.freeze import ALLOCATOR
from contrails.dataset.store import open_dataset
from contrails.folds.filelists import read_filelist
from contrails.inputs.batches import Batch, source_of
from contrails.inputs.normalise import fit_composite
from contrails.inputs.sampling import Sampler
from contrails.models.build import build_model
from contrails.recipe.recipe import Recipe
from contrails.runs.folder import Run
from contrails.train.fold import train_fold
from contrails.train.fold_data import training_rows
from contrails.train.loop import Loop
from contrails.train.objective import Objective
from contrails.train.optim import build_optimizer
from contrails.train.saved import snapshot

RECORDS = 512
"""Half of them train: an epoch is 128 steps of two records."""

UNET = {"encoder": "resnet18"}
TINY = {"encoder": "tu-test_resnet", "encoder_depth": 3, "decoder_channels": (16, 8, 8)}


def main() -> None:
    if not os.environ.keys() >= ALLOCATOR.keys():  # as jobs have it, for the peers too
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # a core is left for threads that write and gather, as on a cluster's node
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, RECORDS)
        results = [*per_step(folder, "U-Net, ResNet18", UNET, 128, 1.03), *small(folder), stall(folder)]
    show(f"train: batches of 2 records of 3 x 64 x 64, {torch.get_num_threads()} threads", results)


def per_step(folder: Path, name: str, model: dict[str, object], steps: int, goal: float) -> list[Result]:
    ours, bare = in_turn(lambda: our_step(folder, model, steps), lambda: bare_step(folder, model, steps))
    ratio = ours / bare
    costs = {"ours, ms": ours, "bare loop, ms": bare}
    return [Result(f"time a step over a bare loop, {name}", ratio, "x", f"{goal}x", ratio <= goal, costs)]


def small(folder: Path) -> list[Result]:
    """On a model small enough to show it: what the loop adds to a step, beside what Lightning adds."""
    loops = [lambda: our_step(folder, TINY, 512), lambda: bare_step(folder, TINY, 512)]
    if importlib.util.find_spec("lightning") is None:
        print("Lightning is not installed (the bench extra): the overhead over its own is left out", file=sys.stderr)
        return []
    ours, bare, lightning = in_turn(*loops, lambda: lightning_step(folder, 512))
    ratio = (ours - bare) / (lightning - bare)
    costs = {"ours, ms": ours, "bare loop, ms": bare, "Lightning, ms": lightning}
    return [Result("overhead a step over Lightning's, small model", ratio, "x", "0.5x", ratio <= 0.5, costs)]


def in_turn(*loops: Callable[[], float]) -> list[float]:
    """Return the median of nine runs of each loop, in milliseconds a step."""
    times = [[loop() for loop in loops] for _ in range(9)]
    return [1e3 * statistics.median(of_a_loop) for of_a_loop in zip(*times, strict=True)]


def recipe_of(folder: Path, model: dict[str, object], steps: int) -> Recipe:
    epochs = -(-steps // (RECORDS // 4))
    return Recipe.model_validate(
        {
            "data": {"dataset": folder / "train.h5", "filelist": folder / "folds.csv"},
            "model": model,
            "train": {"epochs": epochs, "batch_size": 2},
        }
    )


def our_step(folder: Path, model: dict[str, object], steps: int) -> float:
    """Train a fold with snapshots and logging on; return the mean time of its steps, without the ends of epochs."""
    recipe = recipe_of(folder, model, steps)
    run = new_run(Path(tempfile.mkdtemp(dir=folder)) / "run", recipe, "cpu", torch.get_num_threads())
    times: list[float] = []
    original, end_epoch = Loop._step, Loop._end_epoch

    def step(loop: Loop, batches: object) -> None:
        original(loop, batches)
        times.append(time.perf_counter())

    def end(loop: Loop) -> None:
        end_epoch(loop)
        times.append(-time.perf_counter())

    Loop._step, Loop._end_epoch = step, end
    try:
        train_fold(run.fold("0"), {})
    finally:
        Loop._step, Loop._end_epoch = original, end_epoch
    # an epoch's end is a negative time: the step after it begins there
    steps_s = [after - abs(before) for before, after in itertools.pairwise(times) if after > 0]
    return statistics.mean(steps_s[4:])


def bare_step(folder: Path, model: dict[str, object], steps: int) -> float:
    """The loop of a tutorial: forward, loss, backward, clip, step."""
    recipe = recipe_of(folder, model, steps)
    torch.manual_seed(0)
    network, objective = build_model(recipe, 3).train(), Objective(recipe)
    optimizer = build_optimizer(network, recipe.train)
    times = []
    for batch in batches_of(recipe, steps):
        times.append(time.perf_counter())
        optimizer.zero_grad(set_to_none=True)
        objective(network(batch.inputs), batch)[0].backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return statistics.mean(np.diff(times)[4:].tolist())


def batches_of(recipe: Recipe, steps: int) -> Iterator[Batch]:
    """Yield the batches of the first steps of fold 0."""
    dataset = open_dataset(recipe.data.dataset)
    rows, _ = training_rows(dataset, read_filelist(recipe.data.filelist), "0", recipe)
    source = source_of(dataset, recipe, fit_composite(dataset, recipe, rows), torch.device("cpu"))
    return itertools.islice(source.batches(Sampler(dataset, recipe, rows, "0").selections(0, 1)), steps)


def lightning_step(folder: Path, steps: int) -> float:
    import lightning

    recipe = recipe_of(folder, TINY, steps)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.objective = build_model(recipe, 3), Objective(recipe)
            self.times: list[float] = []

        def training_step(self, batch: Batch, _: int) -> torch.Tensor:
            self.times.append(time.perf_counter())
            loss: torch.Tensor = self.objective(self.network(batch.inputs), batch)[0]
            self.log("loss", loss, batch_size=len(batch.inputs))
            return loss

        def transfer_batch_to_device(self, batch: Batch, *_: object) -> Batch:
            return batch  # it is there, and Lightning does not look into frozen dataclasses

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return build_optimizer(self.network, recipe.train)

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", gradient_clip_val=1.0, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, logger=lightning.pytorch.loggers.CSVLogger(folder),
    )  # fmt: skip
    trainer.fit(module, batches_of(recipe, steps))
    return statistics.mean(np.diff(module.times)[4:].tolist())


def stall(folder: Path) -> Result:
    """How long training stands still for a snapshot, over a copy of the state in memory."""
    recipe = recipe_of(folder, UNET, 4)
    from contrails.train.saved.state import new_state

    network = build_model(recipe, 3)
    state = new_state(network, Objective(recipe), recipe.train, torch.device("cpu"))
    network(torch.rand(2, 3, 64, 64)).mask.mean().backward()
    state.optimizer.step()
    writer = snapshot.SnapshotWriter(Run(folder / "stall").fold("0"), 1, lambda: None, lambda _: None)
    stalls, copies = [], []
    for step in range(7):
        state.step = step
        stalls.append(timed(lambda: writer.start(state.state_dict())))
        writer.wait()
        copies.append(timed(lambda: copy.deepcopy(state.state_dict())))
    over = 1e3 * (statistics.median(stalls) - statistics.median(copies))
    costs = {"stall, ms": 1e3 * statistics.median(stalls), "copy, ms": 1e3 * statistics.median(copies)}
    return Result("a snapshot stalls training, over a copy of the state", over, "ms", "20 ms", over <= 20, costs)


def timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
