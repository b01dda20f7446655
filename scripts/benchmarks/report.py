"""What it costs to write metrics down, to make a report, and to list five hundred runs.

The runs are real ones of a tiny model; their metrics are then extended to 100 epochs, since only their number matters.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import tomli_w
from table import Result, show

from contrails.files import append_json_line
from contrails.recipe.recipe import Recipe
from contrails.runs.folder import Run

COMMAND = [sys.executable, "-m", "contrails"]
TINY = {"encoder": "tu-test_resnet", "encoder_depth": 3, "decoder_channels": [16, 8, 8]}
EPOCHS, ROWS_AN_EPOCH, METRICS, RUNS, ROUNDS = 100, 20, 50, 500, 5


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = make_run(folder)
        show("watching", [*report(folder, run), many_runs(folder, run), logging(folder)])


def make_run(folder: Path) -> Run:
    """Train five folds on 60 records of 256 x 256, aggregate them, and extend their metrics."""
    contrails(folder, "demo", "raw", "--size", "256", "--train", "60", "--validation", "1", "--test", "1")
    contrails(folder, "prepare", "raw", "train.h5")
    contrails(folder, "split", "train.h5", "--folds", "5", "-o", "five.csv")
    train = {"epochs": 1, "batch_size": 4}
    recipe = {"data": {"dataset": "train.h5", "filelist": "five.csv"}, "model": TINY, "train": train}
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe))
    contrails(folder, "submit", "recipe.toml", "--folds", "5", "--wait")
    contrails(folder, "aggregate", "recipe", "--weights", "best")
    run = Run(folder / "runs" / "recipe")
    for fold in run.folds():
        steps = EPOCHS * ROWS_AN_EPOCH
        rows = [
            {"step": step, "epoch": step / ROWS_AN_EPOCH, "train/loss": 1 / step, "val/dice": 1 - 1 / step}
            for step in range(1, steps + 1)
        ]
        fold.attempt(1).metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        fold.done.write_text(json.dumps((fold.read_done() or {}) | {"step": steps}))
    return run


def logging(folder: Path) -> Result:
    """A row of 50 metrics every step, over a step of a U-Net with ResNet18 on 8 records of 128 x 128."""
    # only here: what this process has in memory would count for the commands that it starts
    import torch

    from contrails.models.build import build_model

    torch.set_num_threads(1)
    recipe = Recipe.model_validate({"data": {"dataset": "-", "filelist": "-"}})
    model = build_model(recipe, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    inputs = torch.randn(8, 3, 128, 128)

    def step() -> None:
        optimizer.zero_grad()
        model(inputs).mask.mean().backward()
        optimizer.step()

    row = {f"monitor/metric{number}": 0.123456789 * number for number in range(METRICS)}

    def write() -> None:
        append_json_line(folder / "metrics.jsonl", row)

    share = median_s(write, 200) / median_s(step, ROUNDS)
    return Result(f"{METRICS} metrics a step over the step", 100 * share, "%", "1%", share < 0.01)


def report(folder: Path, run: Run) -> list[Result]:
    page = folder / "report.html"
    taken = [measured(folder, "report", str(run.path), "-o", str(page)) for _ in range(ROUNDS)]
    seconds, memory = statistics.median(each[0] for each in taken), max(each[1] for each in taken)
    size = page.stat().st_size / 1e6
    return [
        Result("report, 5 folds of 100 epochs, 60 records", seconds, "s", "20 s", seconds < 20),
        Result("its memory", memory, "MB", "600 MB", memory < 600),
        Result("its size", size, "MB", "15 MB", size < 15),
    ]


def many_runs(folder: Path, run: Run) -> Result:
    """`contrails runs` over 500 finished runs, listed once before."""
    shutil.rmtree(run.aggregate("default") / "out_of_fold")
    for path in (*run.path.rglob("*.safetensors"), *run.path.rglob("*.pt")):
        path.unlink()
    shutil.rmtree(run.code)
    root = folder / "many"
    for number in range(RUNS):
        shutil.copytree(run.path, root / f"run{number:03d}")
    arguments = ("runs", "--csv")
    environment = {"CONTRAILS_RUNS": str(root)}
    measured(folder, *arguments, **environment)
    seconds = statistics.median(measured(folder, *arguments, **environment)[0] for _ in range(ROUNDS))
    return Result(f"runs, {RUNS} of them", seconds, "s", "1 s", seconds < 1)


def median_s(work: Callable[[], None], times: int) -> float:
    work()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def contrails(folder: Path, *arguments: str) -> None:
    own = dict(os.environ) | {"CONTRAILS_RUNS": str(folder / "runs")}
    subprocess.run([*COMMAND, *arguments], cwd=folder, env=own, check=True, stdout=subprocess.DEVNULL)


def measured(folder: Path, *arguments: str, **environment: str) -> tuple[float, float]:
    """Run a command; return its seconds and its largest resident memory in MB."""
    started = time.perf_counter()
    own = dict(os.environ) | {"CONTRAILS_RUNS": str(folder / "runs")} | environment
    process = subprocess.Popen([*COMMAND, *arguments], cwd=folder, env=own, stdout=subprocess.DEVNULL)
    _, code, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    assert process.returncode == 0
    return time.perf_counter() - started, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
