"""The section of `scripts/bench gpu` about memory: snapshots, the peak of a step, and a model that does not fit."""

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from table import Result, left_out
from work import Bench, Step, make_deterministic, new_run, random_batch, start

from contrails.cluster.outcomes import cause_of_exit
from contrails.models.build import build_model
from contrails.models.summary import size_of
from contrails.runs.folder import Fold
from contrails.train.context import JobContext
from contrails.train.fold import train_fold
from contrails.train.objective import Objective
from contrails.train.saved.averages import Average
from contrails.train.saved.finite import tensors_of
from contrails.train.saved.snapshot import SnapshotWriter
from contrails.train.saved.state import new_state

_WHY = "a CPU has no memory of its own"


def memory(bench: Bench) -> Iterator[Result]:
    """Make the model that does not fit first, in a process of its own, as a process that has used a GPU cannot fork."""
    full = left_out("a fold that does not fit ends with the cause gpu_memory", _WHY) if bench.is_tiny else _full(bench)
    make_deterministic()
    yield _stall(bench)
    for stem in ("resnet18", "resnest26d", "resnest50d_512"):
        name = f"peak memory of a step over the estimate of recipe show --model, {stem}"
        yield left_out(name, _WHY) if bench.is_tiny else _peak(bench, stem, name)
    yield full


def _full(bench: Bench) -> Result:
    run = new_run(bench.folder / "full", bench.recipe("resnet18"), "cuda", 1)
    run.fold("0").path.mkdir(parents=True)
    process = start(_train_in_little_memory, run.fold("0"))
    process.join()
    assert process.exitcode is not None
    cause = cause_of_exit(process.exitcode)
    name = "a fold that does not fit ends with the cause gpu_memory"
    is_told = cause == "gpu_memory"
    return Result(
        name, int(is_told), "", "1", is_told, {"exit code": process.exitcode}, "" if is_told else f"cause {cause}"
    )


def _train_in_little_memory(fold: Fold) -> None:
    """Train with a two-hundredth of the GPU's memory."""
    torch.cuda.set_per_process_memory_fraction(0.005)
    train_fold(fold, JobContext(redirect=True))


def _stall(bench: Bench) -> Result:
    """How long training stands still for a snapshot, over a copy of the state to memory that is there."""
    recipe = bench.recipe("resnest26d")
    batch = random_batch(recipe, 2, 64 if bench.is_tiny else 256, bench.device)
    step = Step(recipe, 3, bench.device)
    state = new_state(step.model, Objective(recipe), recipe.train, bench.device)
    step.optimizer = state.optimizer
    step(batch)
    fold = new_run(bench.folder / "stall", recipe, bench.device.type, 1).fold("0")
    writer = SnapshotWriter(fold, 1, lambda: None, lambda _: None)
    tensors = [tensor for tensor in tensors_of(state.state_dict()) if tensor.device.type == bench.device.type]
    copies = [torch.empty_like(tensor, device="cpu", pin_memory=not bench.is_tiny) for tensor in tensors]

    def copy() -> None:
        for target, tensor in zip(copies, tensors, strict=True):
            target.copy_(tensor, non_blocking=True)
        bench.synchronize()

    asked, stalls, plain = [], [], []
    for number in range(3 if bench.is_tiny else 7):
        state.step = number
        bench.synchronize()
        asked.append(_timed(lambda: writer.start(state.state_dict())))
        stalls.append(asked[-1] + _timed(bench.synchronize))  # the GPU's own wait, until the next step may begin
        writer.wait()
        plain.append(_timed(copy))
    stall, least = 1e3 * statistics.median(stalls), 1e3 * statistics.median(plain)
    waits = {"stall, ms": stall, "of it on the CPU, ms": 1e3 * statistics.median(asked), "copy, ms": least}
    costs = waits | {"MB": sum(tensor.nbytes for tensor in tensors) / 1e6}
    name = "a snapshot stalls training, over a copy of the state to pinned memory"
    return Result(name, stall - least, "ms", "20 ms", stall - least <= 20, costs)


def _timed(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def _peak(bench: Bench, stem: str, name: str) -> Result:
    recipe = bench.recipe(stem)
    batch = random_batch(recipe, -(-recipe.train.batch_size // recipe.train.accumulate), 256, bench.device)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(bench.device)
    torch.cuda.reset_peak_memory_stats(bench.device)
    step = Step(recipe, 3, bench.device)
    average = Average(step.model) if recipe.train.ema_decay else None
    for _ in range(3):
        step(batch)
        if average is not None:
            average.update_exponential(recipe.train.ema_decay)
    peak = torch.cuda.max_memory_allocated(bench.device) - before
    with torch.device("meta"):
        estimate = size_of(build_model(recipe, 3).to("meta"), recipe, tuple(batch.inputs.shape[1:]))["memory_bytes"]
    ratio = peak / estimate
    sizes = {"peak, GB": peak / 1e9, "estimate, GB": estimate / 1e9}
    return Result(name, ratio, "x", "0.8x to 1.2x", 0.8 <= ratio <= 1.2, sizes)
