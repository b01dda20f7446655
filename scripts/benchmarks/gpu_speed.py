"""The sections of `scripts/bench gpu` about speed: steps, packed folds, arithmetic, and options."""

import itertools
import os
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from table import Result, left_out
from work import NUM_FOLDS, Bench, Step, make_deterministic, new_run, random_batch, start_fold, wait_until

from contrails.cluster.job.mps import sharing
from contrails.cluster.queue.freeze import package_folder
from contrails.cluster.schedulers.devices import visible_devices
from contrails.cluster.schedulers.sites import num_cores
from contrails.dataset.store import open_dataset
from contrails.errors import TrainingError
from contrails.files import read_json_lines
from contrails.folds.filelists import read_filelist
from contrails.inputs.batches import Batch, Source, source_of
from contrails.inputs.normalise import fit_composite
from contrails.inputs.sampling import Sampler
from contrails.models.build import build_model
from contrails.models.summary import size_of
from contrails.recipe.augment import TEMPORAL, AugmentSection, Kind
from contrails.recipe.recipe import Recipe
from contrails.runs.folder import Fold
from contrails.train.fold import train_fold
from contrails.train.fold_data import training_rows
from contrails.train.loop import Loop

MODELS = {"U-Net, ResNet18": "resnet18", "U-Net, ResNeSt26d": "resnest26d"}
_ROUNDS, _EPOCHS = 3, 6
"""Rounds of a measurement of the loop, and the epochs of each, of which the first warms up."""

_WARM_STEP = 2
"""Number of the step in which nothing may wait for the device."""


def steps(bench: Bench) -> Iterator[Result]:
    """Time the loop beside a bare one and without deterministic kernels, and look for waits within a step."""
    for name, stem in MODELS.items():
        keys = "train.ema_decay=0", f"train.epochs={_epochs(bench)}"
        recipe = bench.recipe(stem, *keys)
        rounds: list[tuple[float, float, float]] = []
        while not rounds or (len(rounds) < _ROUNDS and not bench.is_late and not bench.is_tiny):
            ours, waited = our_step(bench, recipe)
            rounds.append((ours, waited, bare_step(bench, recipe)))
        ours, waited, bare = (statistics.median(values) for values in zip(*rounds, strict=True))
        loop = {"ours, ms": 1e3 * ours, "bare loop, ms": 1e3 * bare}
        yield Result(f"{name}: step over a bare loop", ours / bare, "x", "1.03x", ours / bare <= 1.03, loop)
        yield Result(f"{name}: fraction of time that waits for data", 100 * waited, "%", "1 %", waited < 0.01)
        free = our_step(bench, bench.recipe(stem, *keys, "train.deterministic=false"))[0]
        kinds = {"deterministic, ms": 1e3 * ours, "others, ms": 1e3 * free}
        yield Result(f"{name}: deterministic step over others", ours / free, "x", "1.15x", ours / free <= 1.15, kinds)
    changes = [name for name, kind in AugmentSection() if isinstance(kind, Kind) and name not in TEMPORAL]
    every = [f"augment.{name}.probability=0.6" for name in changes]
    yield _waits(bench, "with the recipe's augmentation", [])
    yield _waits(bench, "with every augmentation", every)


def our_step(bench: Bench, recipe: Recipe) -> tuple[float, float]:
    """Train a fold with logging on; return the seconds per step, and the fraction of them that waits for data.

    The ends of epochs, with validation and a snapshot, do not count: an epoch has few steps here.
    """
    times: list[tuple[float, float]] = []
    end_epoch = Loop._end_epoch

    def note(loop: Loop) -> None:
        bench.synchronize()
        times.append((time.perf_counter(), loop._pace._waited_s))

    def end(loop: Loop) -> None:
        note(loop)
        end_epoch(loop)
        loop._saved(must=True)
        note(loop)

    torch.use_deterministic_algorithms(False)  # training sets it where its recipe asks for it
    fold = _new_fold(bench, recipe)
    with _replaced("_end_epoch", end):
        train_fold(fold)
    epochs, waits = np.diff(times, axis=0)[1::2].T  # from the end of an epoch's end to the end of the next epoch
    num_steps = source_and_sampler(bench, recipe)[1].steps_per_epoch
    return float(np.median(epochs)) / num_steps, float(waits.sum() / epochs.sum())


def _epochs(bench: Bench) -> int:
    return 2 if bench.is_tiny else _EPOCHS


def _new_fold(bench: Bench, recipe: Recipe) -> Fold:
    number = len(list(bench.folder.glob("run-*")))
    run = new_run(bench.folder / f"run-{number}", recipe, bench.device.type, _threads(bench))
    run.fold("0").path.mkdir(parents=True)
    return run.fold("0")


def _threads(bench: Bench) -> int:
    return 1 if bench.is_tiny else max(1, num_cores() // NUM_FOLDS)


@contextmanager
def _replaced(name: str, function: Callable[..., None]) -> Iterator[None]:
    """Replace a method of the loop during the body."""
    before = getattr(Loop, name)
    setattr(Loop, name, function)
    try:
        yield
    finally:
        setattr(Loop, name, before)


def bare_step(bench: Bench, recipe: Recipe) -> float:
    """Return the seconds per step of a plain loop over the same batches."""
    make_deterministic()
    source, sampler = source_and_sampler(bench, recipe)
    step, epochs = Step(recipe, source.num_channels, bench.device), []
    batches = source.batches(sampler.selections(0, 1))
    for _ in range(_epochs(bench)):
        bench.synchronize()
        started = time.perf_counter()
        for batch in itertools.islice(batches, sampler.steps_per_epoch):
            step(batch)
        bench.synchronize()
        epochs.append(time.perf_counter() - started)
    return statistics.median(epochs[1:]) / sampler.steps_per_epoch


def source_and_sampler(bench: Bench, recipe: Recipe) -> tuple[Source, Sampler]:
    """Return what makes the batches of fold 0."""
    dataset = open_dataset(recipe.data.dataset)
    rows, _ = training_rows(dataset, read_filelist(recipe.data.filelist), "0", recipe)
    source = source_of(dataset, recipe, fit_composite(dataset, recipe, rows), bench.device)
    return source, Sampler(dataset, recipe, rows, "0")


def _waits(bench: Bench, what: str, overrides: Sequence[str]) -> Result:
    """Make one step of a training in which a wait for the device is an error."""
    name = f"no wait for the device within a step, {what}"
    if bench.is_tiny:
        return left_out(name, "a CPU has none")
    original = Loop._step

    def step(loop: Loop, batches: Iterator[Batch]) -> None:
        if loop.state.step != _WARM_STEP:
            original(loop, batches)
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            original(loop, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    recipe = bench.recipe("resnest26d", f"train.steps={_WARM_STEP + 2}", *overrides)
    try:
        with _replaced("_step", step):
            train_fold(_new_fold(bench, recipe))
    except RuntimeError as error:
        own = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if package_folder() in Path(frame.filename).parents
        ]
        where = f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else "outside of contrails"
        return Result(name, 0, "", "1", False, note=f"{str(error).splitlines()[0]} ({where})")
    return Result(name, 1, "", "1", True)


def packed(bench: Bench) -> Iterator[Result]:
    """Train five folds side by side on the device, with and without MPS, and one alone, for the same time."""
    count = 2 if bench.is_tiny else NUM_FOLDS
    recipe = bench.recipe("resnet18", "train.epochs=100000")
    with _replaced("_end_epoch", _only_count):  # epochs of few records would measure the disk
        alone, together = (_steps_per_s(bench, recipe, f"{number}-at-once", number) for number in (1, count))
    name, per_step = f"folds per hour, {count} in one job over one by one, ResNet18", 3600 * recipe.train.batch_size

    def result(name: str, found: float) -> Result:
        rates = {"packed, records/h": found * per_step, "one by one, records/h": alone * per_step}
        return Result(name, found / alone, "x", "2x", found / alone >= 2, rates)

    yield result(name, together)
    with sharing([None if bench.is_tiny else visible_devices()[0]] * count, mps=True) as (environment, *_):
        if "CUDA_MPS_PIPE_DIRECTORY" not in environment:
            yield left_out(f"{name}, with MPS", "MPS cannot be started here" if environment else "a CPU has none")
            return
        os.environ.update(environment)  # of the processes of the folds; this one uses no GPU
        with _replaced("_end_epoch", _only_count):
            yield result(f"{name}, with MPS", _steps_per_s(bench, recipe, "with-mps", count))


def _only_count(loop: Loop) -> None:
    loop.state.epoch += 1


def _steps_per_s(bench: Bench, recipe: Recipe, name: str, count: int) -> float:
    """Return the sum of the rates of folds that train at once, while all of them do."""
    run = new_run(bench.folder / name, recipe, bench.device.type, _threads(bench))
    folds = [run.fold(str(number)) for number in range(count)]
    processes = [start_fold(fold) for fold in folds]
    have_begun = wait_until(lambda: all(len(_telemetry(fold)) > 1 for fold in folds), *processes)
    begin, seconds = time.time(), 1 if bench.is_tiny else 0.2 * bench.seconds
    if have_begun:
        wait_until(lambda: time.time() > begin + seconds, *processes)
    for process in processes:
        process.terminate()  # SIGTERM: a fold saves its position
    for process, fold in zip(processes, folds, strict=True):
        process.join()
        if process.exitcode != 75:
            raise RuntimeError(f"fold {fold.key} ended with exit code {process.exitcode}: {_last_words(fold)}")
    return sum(_rate(fold, begin, begin + seconds) for fold in folds)


def _telemetry(fold: Fold) -> list[dict[str, float]]:
    return read_json_lines(fold.attempt(1).telemetry)


def _last_words(fold: Fold) -> str:
    lines = fold.attempt(1).stderr.read_text().splitlines() if fold.attempt(1).stderr.exists() else []
    return lines[-1] if lines else "it said nothing"


def _rate(fold: Fold, begin: float, end: float) -> float:
    rows = [row for row in _telemetry(fold) if begin - 1 <= row["time"] <= end]
    if len(rows) < 2:
        raise RuntimeError(f"fold {fold.key} made too few steps to measure; give more --minutes")
    return (rows[-1]["step"] - rows[0]["step"]) / (rows[-1]["time"] - rows[0]["time"])


def arithmetic(bench: Bench) -> Iterator[Result]:
    """Compare the arithmetic of a step of ResNeSt50d at 512 pixels with that of a product of large matrices."""
    make_deterministic()
    recipe, side = bench.recipe("resnest50d_512"), 64 if bench.is_tiny else 256
    batch = random_batch(recipe, recipe.train.batch_size, side, bench.device)
    step = Step(recipe, batch.inputs.shape[-3], bench.device)
    seconds = time_of(bench, lambda: step(batch))
    with torch.device("meta"):
        macs = size_of(build_model(recipe, 3).to("meta"), recipe, tuple(batch.inputs.shape[1:]))["macs"]
    # two operations per multiply-add, and twice as many backward as forward
    of_step = 6 * macs * len(batch.inputs) / seconds
    length = 512 if bench.is_tiny else 8192
    one, other = (torch.randn(length, length, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    of_product = 2 * length**3 / time_of(bench, lambda: one @ other)
    costs = {"step, TFLOP/s": of_step / 1e12, "matrices, TFLOP/s": of_product / 1e12}
    yield Result(
        "arithmetic of a step, resnest50d at 512, over a bf16 matrix product",
        of_step / of_product,
        "x",
        "",
        None,
        costs,
    )


def time_of(bench: Bench, function: Callable[[], object]) -> float:
    """Return the median seconds of a call, over several rounds of calls."""
    for _ in range(1 if bench.is_tiny else 5):
        function()
    calls, rounds = (1, 1) if bench.is_tiny else (10, 5)
    times = []
    for _ in range(rounds):
        bench.synchronize()
        started = time.perf_counter()
        for _ in range(calls):
            function()
        bench.synchronize()
        times.append((time.perf_counter() - started) / calls)
    return statistics.median(times)


def options(bench: Bench) -> Iterator[Result]:
    """Time a step with each option that is to make it faster, over the plain step."""
    make_deterministic()
    plain = ("train.channels_last=false",)
    changes = {
        "channels last": ("train.channels_last=true",),
        "fused AdamW": plain,
        "torch.compile": (*plain, "train.compile=true"),
        "CUDA graphs": (*plain, "train.cuda_graph=true"),
    }
    not_on_a_cpu = {"torch.compile": "on a CPU its C++ compiler takes a minute", "CUDA graphs": "a CPU has none"}
    base = _option(bench, plain)
    for name, overrides in changes.items():
        if name in not_on_a_cpu and bench.is_tiny:
            yield left_out(f"plain step over {name}", not_on_a_cpu[name])
            continue
        try:
            found = _option(bench, overrides, fused=name == "fused AdamW")
        except (RuntimeError, TrainingError) as error:
            yield left_out(f"plain step over {name}", str(error).splitlines()[0])
            continue
        costs = {"plain, ms": 1e3 * base, f"{name}, ms": 1e3 * found}
        yield Result(f"plain step over {name}, ResNet18", base / found, "x", "", None, costs)


def _option(bench: Bench, overrides: Sequence[str], *, fused: bool = False) -> float:
    recipe = bench.recipe("resnet18", *overrides)
    batch = random_batch(recipe, recipe.train.batch_size, 64 if bench.is_tiny else 256, bench.device)
    step = Step(recipe, 3, bench.device)
    if not fused:
        step.optimizer = torch.optim.AdamW(step.model.parameters(), recipe.train.lr)  # torch's default
    return time_of(bench, lambda: step(batch))
