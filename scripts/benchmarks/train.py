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
from unittest.mock import patch

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
from contrails.train.optim import build_optimizer, learning_rate, set_rates
from contrails.train.saved import snapshot
from contrails.train.saved.state import new_state

RECORDS = 512
"""Half of them train: an epoch is 128 steps of two records."""

UNET: dict[str, object] = {"encoder": "resnet18"}
TINY: dict[str, object] = {"encoder": "tu-test_resnet", "encoder_depth": 3, "decoder_channels": (16, 8, 8)}

Times = dict[str, list[float]]
"""Seconds of each step of a loop, and of the bare step after it, by clock."""

_CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.thread_time}


def main() -> None:
    if not os.environ.keys() >= ALLOCATOR.keys():  # as jobs have it, for the peers too
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # a core is left for threads that write and gather, as on a cluster's node
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_data(folder, RECORDS)
        results = [in_proportion(folder), *added(folder), stall(folder)]
    show(f"train: batches of 2 records of 3 x 64 x 64, {torch.get_num_threads()} threads", results)


def in_proportion(folder: Path) -> Result:
    """How much longer a step of a usual model takes than in a bare loop."""
    steps = our_steps(folder, UNET, 128)
    ratio = median_of_blocks(steps.ours["wall"]) / median_of_blocks(steps.bare["wall"])
    return Result(
        "time per step over a bare loop, U-Net, ResNet18", ratio, "x", "1.03x", ratio <= 1.03, steps.medians("wall")
    )


def added(folder: Path) -> Iterator[Result]:
    """On a small model: the CPU time that the loop adds to a step, what it consists of, and what Lightning adds."""
    steps = our_steps(folder, TINY, 768)
    peers = steps.medians("cpu") | steps.quartiles()
    if importlib.util.find_spec("lightning") is None:
        print("Lightning is not installed (the bench extra): what it adds is left out", file=sys.stderr)
    else:
        peers["Lightning adds, ms"] = lightning_steps(folder, 768).added()
    ours = steps.added()
    yield Result("CPU time added to a bare step, small model", ours, "ms", "1 ms", ours <= 1, peers)
    assert steps.loop is not None
    yield Result(
        "CPU time of the parts that a bare loop lacks",
        sum((parts := parts_of(steps.loop)).values()),
        "ms",
        "",
        None,
        parts,
    )


class Steps:
    """Times of a loop's steps, each followed by a step of a bare loop in the same thread.

    Both then meet the same caches and the same speed of the processor, so that their difference is measured to a few
    hundredths of a millisecond, where medians of whole runs differ by several milliseconds.
    """

    def __init__(self, bare: Iterator[None]) -> None:
        self._bare, self._since = bare, dict[str, float]()
        self.ours: Times = {clock: [] for clock in _CLOCKS}
        self.bare: Times = {clock: [] for clock in _CLOCKS}
        self.loop: Loop | None = None

    def end(self) -> None:
        """End a step of the measured loop, and take a bare step."""
        self._note(self.ours)
        self._since = _now()
        next(self._bare)
        self._note(self.bare)
        self._since = _now()

    def pause(self) -> None:
        """Leave out what follows until the next step has ended, such as the end of an epoch."""
        self._since = {}

    def medians(self, clock: str) -> dict[str, float]:
        """Return the time per step of both loops in milliseconds."""
        return {"ours, ms": median_of_blocks(self.ours[clock]), "bare loop, ms": median_of_blocks(self.bare[clock])}

    def added(self) -> float:
        """Return the CPU time that the loop adds to a bare step, in milliseconds."""
        return median_of_blocks(self._differences())

    def quartiles(self) -> dict[str, float]:
        """Return the quartiles of `added` over blocks of steps, in milliseconds."""
        low, _, high = statistics.quantiles(blocks_of(self._differences()))
        return {"lower quartile, ms": low, "upper quartile, ms": high}

    def _differences(self) -> list[float]:
        return [ours - bare for ours, bare in zip(self.ours["cpu"], self.bare["cpu"], strict=False)]

    def _note(self, times: Times) -> None:
        for clock, now in _now().items():
            if clock in self._since:
                times[clock].append(now - self._since[clock])


def _now() -> dict[str, float]:
    return {clock: read() for clock, read in _CLOCKS.items()}


def blocks_of(seconds: list[float]) -> list[float]:
    """Return the means of blocks of ten steps, of which one is logged, in milliseconds; the first block warms up."""
    return [1e3 * statistics.mean(seconds[start : start + 10]) for start in range(10, len(seconds) - 9, 10)]


def median_of_blocks(seconds: list[float]) -> float:
    return statistics.median(blocks_of(seconds))


def recipe_of(folder: Path, model: dict[str, object], steps: int) -> Recipe:
    epochs = -(-steps // (RECORDS // 4))
    return Recipe.model_validate(
        {
            "data": {"dataset": folder / "train.h5", "filelist": folder / "folds.csv"},
            "model": model,
            "train": {"epochs": epochs, "batch_size": 2, "warmup_steps": 0},
        }
    )


def our_steps(folder: Path, model: dict[str, object], number: int) -> Steps:
    """Train a fold with snapshots and logging on."""
    recipe = recipe_of(folder, model, number)
    run = new_run(Path(tempfile.mkdtemp(dir=folder)) / "run", recipe, "cpu", torch.get_num_threads())
    steps = Steps(bare_steps(recipe))
    original, end_epoch = Loop._step, Loop._end_epoch

    def step(loop: Loop, batches: Iterator[Batch]) -> None:
        original(loop, batches)
        steps.loop = loop
        steps.end()

    def end(loop: Loop) -> None:
        end_epoch(loop)
        steps.pause()

    with patch.object(Loop, "_step", step), patch.object(Loop, "_end_epoch", end):
        train_fold(run.fold("0"))
    return steps


def bare_steps(recipe: Recipe) -> Iterator[None]:
    """The loop of a tutorial, a step at a time: forward, loss, backward, clip, step."""
    torch.manual_seed(0)
    network, objective = build_model(recipe, 3).train(), Objective(recipe)
    optimizer = build_optimizer(network, recipe.train)
    for batch in batches_of(recipe):
        optimizer.zero_grad(set_to_none=True)
        objective(network(batch.inputs), batch)[0].backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        yield


def parts_of(loop: Loop) -> dict[str, float]:
    """Return the CPU time per step, in milliseconds, of what a bare loop does not do."""
    state, section = loop.state, loop.recipe.train
    term = torch.zeros(())

    def rates() -> None:
        rate = learning_rate(section, 100, loop._course)
        set_rates(state.optimizer, section, 100, loop._course, rate)

    def sums() -> None:
        loss = torch.zeros_like(state.loss_sum)
        loss += torch.stack([term] * len(loss)) * 1.0
        state.loss_sum += loss
        state.loss_smooth.lerp_(loss[0], 0.02)

    def log() -> None:
        state.loss_steps = 1
        loop._log_training()

    parts: dict[str, tuple[Callable[[], object], int]] = {
        "seed of the step, ms": (lambda: loop._seed("step", 1), 1),
        "learning rate, ms": (rates, 1),
        "sums of the loss, ms": (sums, 1),
        "poll, ms": (loop._poll, 1),
        "rows of metrics and telemetry, ms": (log, section.log_every),
    }
    return {name: cpu_ms(call) / every for name, (call, every) in parts.items()}


def cpu_ms(call: Callable[[], object], times: int = 300) -> float:
    """Return the median CPU time of a call in milliseconds."""
    seconds = []
    for _ in range(times):
        since = time.thread_time()
        call()
        seconds.append(time.thread_time() - since)
    return 1e3 * statistics.median(seconds)


def batches_of(recipe: Recipe) -> Iterator[Batch]:
    """Yield the batches of fold 0, without an end."""
    dataset = open_dataset(recipe.data.dataset)
    rows, _ = training_rows(dataset, read_filelist(recipe.data.filelist), "0", recipe)
    source = source_of(dataset, recipe, fit_composite(dataset, recipe, rows), torch.device("cpu"))
    return source.batches(Sampler(dataset, recipe, rows, "0").selections(0, 1))


def lightning_steps(folder: Path, number: int) -> Steps:
    import lightning

    recipe = recipe_of(folder, TINY, number)
    steps = Steps(bare_steps(recipe))

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network, self.objective = build_model(recipe, 3), Objective(recipe)

        def training_step(self, batch: Batch, _: int) -> torch.Tensor:
            steps.end()  # a step is from one forward to the next
            loss: torch.Tensor = self.objective(self.network(batch.inputs), batch)[0]
            self.log("loss", loss, batch_size=len(batch.inputs))
            return loss

        def transfer_batch_to_device(self, batch: Batch, *_: object) -> Batch:
            return batch  # it is there, and Lightning does not look into frozen dataclasses

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return build_optimizer(self.network, recipe.train)

    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", gradient_clip_val=1.0, default_root_dir=folder, enable_progress_bar=False,
        enable_model_summary=False, logger=lightning.pytorch.loggers.CSVLogger(folder),
    )  # fmt: skip
    trainer.fit(Module(), itertools.islice(batches_of(recipe), number))
    return steps


def stall(folder: Path) -> Result:
    """How long training stands still for a snapshot, over a copy of the state in memory."""
    recipe = recipe_of(folder, UNET, 4)
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
