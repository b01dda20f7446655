"""`contrails sync` against a W&B server on this machine: what faults leave behind, and what it costs.

The first table is that of the faults: what the server did, what it holds in the end beside `metrics.jsonl`, what the
user was told. The second holds the numbers. Both are taken with the installed wandb and, where the registry answers,
with the oldest that setup.cfg allows; --json has the numbers alone.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from report import contrails
from rich.console import Console
from rich.table import Table
from table import Result, show

from contrails.cluster.queue.freeze import ALLOCATOR
from contrails.files import read_json
from contrails.runs.folder import Fold, Run
from contrails.runs.metrics import fold_metrics

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "tracking"))

from fault_cases import LONG, QUICK, FaultCase, end  # noqa: E402
from killed import SYNC_STAGES, WORKER_STAGES  # noqa: E402
from wandb_server import KEY, WandbServer  # noqa: E402

ROWS, FOLDS, FOLLOWED_S, SNAPSHOT_EVERY_S, STEPS_A_SNAPSHOT = 10_000, 5, 180.0, 30.0, 20


@dataclass
class Outcome:
    """A row of the table of faults."""

    fault: str
    held: str
    told: str
    holds: bool


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = make_run(folder)
        results = list[Result]()
        for which, environment in {version("wandb"): {}, **oldest(folder)}.items():
            newest = not environment
            outcomes = list(faults(folder, run, environment, [*QUICK, *LONG] if newest else QUICK))
            present(f"sync, wandb {which}", outcomes)
            good = sum(each.holds for each in outcomes)
            title = f"faults after which all rows are there once, wandb {which}"
            results.append(Result(title, good, "", f"{len(outcomes)}", good == len(outcomes)))
            if newest:
                results += [projected(folder, run, environment), *followed(folder, run, environment)]
    show("sync", results)


def present(title: str, outcomes: list[Outcome]) -> None:
    """Print the table of faults unless JSON was asked for, which has the numbers alone."""
    if "--json" in sys.argv:
        return
    table = Table(title=title)
    for heading in ("fault", "what the server holds in the end", "what the user was told"):
        table.add_column(heading, overflow="fold")
    for each in outcomes:
        table.add_row(each.fault, each.held, each.told)
    Console().print(table)


def make_run(folder: Path) -> Run:
    """Train five folds of a tiny model to their end."""
    contrails(folder, "demo", "raw", "--size", "32", "--train", "20", "--validation", "1", "--test", "1")
    contrails(folder, "prepare", "raw", "train.h5")
    contrails(folder, "split", "train.h5", "--folds", str(FOLDS), "-o", "five.csv")
    (folder / "recipe.toml").write_text(
        '[data]\ndataset = "train.h5"\nfilelist = "five.csv"\n[model]\nencoder = "tu-test_resnet"\nencoder_depth = 3\n'
        "decoder_channels = [16, 8, 8]\n[train]\nepochs = 3\nbatch_size = 8\nlog_every = 1\n"
    )
    contrails(folder, "submit", "recipe.toml", "--folds", str(FOLDS), "--wait")
    return Run(folder / "runs" / "recipe")


def oldest(folder: Path) -> dict[str, dict[str, str]]:
    """Return the oldest wandb that setup.cfg allows, with what has it imported; nothing without a registry."""
    wanted = re.search(r"^    wandb>=(\S+)", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert wanted is not None
    target = folder / "oldest"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--target",
        str(target),
        f"wandb=={wanted[1]}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"wandb {wanted[1]} is left out: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return {}
    return {wanted[1]: {"PYTHONPATH": str(target)}}


class Site:
    """A copy of a run's fold 0, or of all folds, beside a server of its own."""

    def __init__(self, folder: Path, run: Run, environment: dict[str, str]) -> None:
        self.server = WandbServer()
        self.server.start()
        self.run = Run(Path(tempfile.mkdtemp(dir=folder)) / "recipe")
        shutil.copytree(run.path, self.run.path)
        self.fold = self.run.fold("0")
        self.environment = os.environ | ALLOCATOR | environment
        self.environment |= {"WANDB_BASE_URL": self.server.url, "WANDB_API_KEY": KEY, "HOME": str(folder)}
        self.environment["WANDB_INIT_TIMEOUT"] = "20"

    def sync(self, *arguments: str, script: list[str] | None = None) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, *(script or ["-m", "contrails", "sync"]), str(self.run.path), *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def outcome(self, fault: str, told: str) -> Outcome:
        """Compare what the server holds with the fold's rows."""
        rows, runs = fold_metrics(self.fold), list(self.server.held.runs.values())
        run = self.server.held.runs.get((read_json(self.fold.wandb) or {}).get("id", ""))
        holds = run is not None and run.rows == rows and run.state == "finished" and not self.server.held.wrong
        held = f"{len(run.rows) if run else 0} of {len(rows)} rows, {'all as' if holds else 'NOT as'} metrics.jsonl"
        held += f", {run.state}" if run else ""
        return Outcome(fault, held + (f", {len(runs)} runs" if len(runs) != 1 else ""), told, holds)


def faults(folder: Path, run: Run, environment: dict[str, str], cases: list[FaultCase]) -> Iterator[Outcome]:
    """Yield what each fault leaves behind, once the server is well again and the same command was given again."""
    for case in cases:
        site = Site(folder, run, environment)
        case.begin(site.server)
        told = said(site.sync("--fold", "0"))
        end(site.server)
        site.sync("--fold", "0")
        yield site.outcome(case.name, told)
        site.server.stop()
    killed = str(ROOT / "tests" / "tracking" / "killed.py")
    for stage in [*WORKER_STAGES, *SYNC_STAGES]:
        site = Site(folder, run, environment)
        told = said(site.sync("--fold", "0", script=[killed, stage, "sync"]))
        site.sync("--fold", "0")
        who = "sync" if stage in SYNC_STAGES else "wandb-core" if stage == "wandb-core" else "its worker"
        yield site.outcome(f"{who} killed: {stage}", told)
        site.server.stop()
    site = Site(folder, run, environment)
    done = site.sync("--fold", "0")
    assert done.returncode == 0, done.stderr
    site.server.held.delete(read_json(site.fold.wandb)["id"])
    (site.run.path / "notes.jsonl").write_text('{"text":"new"}\n')
    told = said(site.sync("--fold", "0"))
    site.sync("--fold", "0", "--rebuild")
    yield site.outcome("run deleted, then --rebuild", told)
    site.server.stop()


def said(done: "subprocess.CompletedProcess[str]") -> str:
    lines = " ".join(done.stderr.split()) or " ".join(done.stdout.split())
    return f"{lines[:240]} ({done.returncode})"


def extend(fold: Fold, steps: int) -> None:
    """Have a finished fold hold so many rows."""
    rows = [
        {"step": step, "epoch": step / 20 + 0.01, "train/loss": 1 / step, "train/lr": 1e-3, "val/dice": 1 - 1 / step}
        for step in range(1, steps + 1)
    ]
    fold.attempt(1).metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fold.done.write_text(json.dumps((fold.read_done() or {}) | {"step": steps}))


def projected(folder: Path, run: Run, environment: dict[str, str]) -> Result:
    """The time of a sync of many rows."""
    site = Site(folder, run, environment)
    for fold in site.run.folds():
        extend(fold, ROWS)
    before, started = os.times(), time.perf_counter()
    done = site.sync()
    seconds, after = time.perf_counter() - started, os.times()
    cores = after.children_user + after.children_system - before.children_user - before.children_system
    assert done.returncode == 0, done.stderr
    assert sorted(len(each.rows) for each in site.server.held.runs.values()) == [ROWS] * FOLDS
    assert all(held(site, fold) == fold_metrics(fold) for fold in site.run.folds())
    site.server.stop()
    return Result(
        f"sync of {FOLDS} folds of {ROWS:,} rows", seconds, "s", "30 s", seconds <= 30, {"of a core, s": cores}
    )


def held(site: Site, fold: Fold) -> list[dict[str, Any]]:
    return site.server.held.runs[read_json(fold.wandb)["id"]].rows


def followed(folder: Path, run: Run, environment: dict[str, str]) -> Iterator[Result]:
    """What --follow uses of a core beside five folds that train, and the time from a snapshot to its rows."""
    site = Site(folder, run, environment)
    folds = site.run.folds()
    for fold in folds:
        fold.done.unlink()
        for name in fold.all_snapshots():
            name.path.unlink()
        job = fold.attempt(1).job
        job.write_text(json.dumps(read_json(job) | {"host": "another"}))
    (site.run.journal).unlink(missing_ok=True)
    delays, step = list[float](), 0
    command = [sys.executable, "-m", "contrails", "sync", str(site.run.path), "--follow"]
    with psutil.Popen(command, env=site.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as follower:
        began = time.monotonic()
        while time.monotonic() - began < FOLLOWED_S:
            step += STEPS_A_SNAPSHOT
            for fold in folds:
                snapshot(fold, step)
            delays.append(seconds_until(site, folds, step))
            if step == STEPS_A_SNAPSHOT:
                before, since = used(follower), time.monotonic()  # what a start costs comes once
            time.sleep(max(0.0, SNAPSHOT_EVERY_S - delays[-1]))
        share = (used(follower) - before) / (time.monotonic() - since)
        for process in [*follower.children(recursive=True), follower]:
            process.kill()
    site.server.stop()
    title = f"core that --follow uses, {FOLDS} folds with a snapshot every {SNAPSHOT_EVERY_S:.0f} s"
    yield Result(title, 100 * share, "%", "1%", share <= 0.01)
    yield Result("from a snapshot to its rows on the server, at most", max(delays), "s", "30 s", max(delays) <= 30)


def snapshot(fold: Fold, step: int) -> None:
    """Write the rows up to a step, and what covers them."""
    with fold.attempt(1).metrics.open("a" if step > STEPS_A_SNAPSHOT else "w") as file:
        for each in range(step - STEPS_A_SNAPSHOT + 1, step + 1):
            file.write(json.dumps({"step": each, "epoch": each / 20 + 0.01, "train/loss": 1 / each}) + "\n")
    state = {"status": "running", "step": step, "time": time.time()}
    fold.attempt(1).state.write_text(json.dumps(state))
    fold.snapshot(step, 1, "0" * 16).write_bytes(b"")


def seconds_until(site: Site, folds: list[Fold], step: int) -> float:
    """Wait until the server holds the rows of all folds up to a step."""
    since = time.monotonic()
    while any(num_held(site, fold) < step for fold in folds):
        assert time.monotonic() - since < 120, [num_held(site, fold) for fold in folds]
        time.sleep(0.1)
    return time.monotonic() - since


def num_held(site: Site, fold: Fold) -> int:
    run = site.server.held.runs.get((read_json(fold.wandb) or {}).get("id", ""))
    return run.count("wandb-history.jsonl") if run else 0


def used(process: psutil.Process) -> float:
    """Return the seconds of a processor that a process and its children have used."""
    times = [each.cpu_times() for each in [process, *process.children(recursive=True)]]
    return sum(each.user + each.system for each in times)


if __name__ == "__main__":
    main()
