"""The drill: train twice, once undisturbed and once interrupted, and compare the results bit by bit.

It makes its own data and runs under the root of all runs, and uses the same jobs as any other run. The result is valid
for this site, its file system and this version of the code. On this machine it kills processes. At a site with a
scheduler it interrupts the job by the scheduler's commands and waits for the job to continue.
"""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from contrails.cluster.queue.journal import last_submission
from contrails.cluster.queue.submission import reference
from contrails.cluster.schedulers.base import Reference, scheduler_of
from contrails.cluster.schedulers.sites import Site, site_of
from contrails.cluster.status.fold_state import ALIVE, FoldState
from contrails.cluster.status.overview import overview
from contrails.cluster.submit.create import create_run
from contrails.cluster.submit.folds import submit_folds
from contrails.dataset.pack import pack
from contrails.dataset.store import open_dataset
from contrails.errors import TrainingError
from contrails.files import read_hint, read_json_lines, to_json, write_atomic
from contrails.folds.filelists import make_folds, write_filelist
from contrails.progress import bar
from contrails.recipe.recipe import Recipe
from contrails.runs.folder import Attempt, Fold, Run
from contrails.runs.metrics import fold_metrics
from contrails.sources.goes import make_plan
from contrails.synthetic.goes import Parameters, make_dataset

_FOLD = "0"
_PATIENCE_S = 120.0
"""Longest time in seconds without a new step."""


@dataclass(frozen=True)
class Kill:
    """One interruption: its kind, the number of steps trained twice, and the seconds until the next new step."""

    way: str
    steps_lost: int
    seconds_lost: float


@dataclass(frozen=True)
class Outcome:
    """The result of a drill; `equal` compares the SHA-256 of all weights, their scores and all rows of metrics."""

    kills: tuple[Kill, ...]
    equal: bool
    steps: int
    undisturbed_s: float


def drill(site: Site, name: str, data: Path, num_kills: int, seed: int) -> Outcome:
    """Train twice and compare; the runs are called `name`-undisturbed and `name`-killed.

    Raises:
        TrainingError: a training did not continue.
    """
    recipe = small_recipe(data, num_kills, site.num_ranks)
    undisturbed, killed = (_create(recipe, site, f"{name}-{kind}") for kind in ("undisturbed", "killed"))
    started = time.monotonic()
    _submit(undisturbed)
    _wait(undisturbed, undisturbed.fold(_FOLD).done.exists, "to finish")
    seconds = time.monotonic() - started
    kills = tuple(_killed(killed, site, num_kills, random.Random(seed)))  # noqa: S311 - moments, not secrets
    results = [result_of(run.fold(_FOLD)) for run in (undisturbed, killed)]
    return Outcome(kills, results[0] == results[1], results[0]["step"], seconds)


def make_data(folder: Path, num_records: int = 16) -> None:
    """Make a dataset of a few records of 64 x 64 pixels and a file list of two folds."""
    make_dataset(folder / "raw", Parameters(train=num_records, validation=1, test=1, size=64, seed=0))
    path = folder / "train.h5"
    pack(make_plan(folder / "raw", "train", (11, 14, 15), (4,)), path, num_workers=1)
    dataset = open_dataset(path)
    positive = dataset.positive_pixels(range(dataset.num_records)) > 0
    labelled = np.ones(dataset.num_records, bool)
    folds = make_folds(dataset.record_ids, dataset.groups, positive, labelled, 2, held_out=0, seed=0)
    write_filelist(folder / "folds.csv", folds, "contrails drill")


def small_recipe(data: Path, num_kills: int, num_ranks: int = 1) -> Recipe:
    """Return a recipe that trains long enough for this number of interruptions, with a record for each rank."""
    return Recipe.model_validate(
        {
            "data": {"dataset": data / "train.h5", "filelist": data / "folds.csv"},
            "model": {"encoder": "tu-test_resnet", "encoder_depth": 3, "decoder_channels": (16, 8, 8)},
            "train": {
                "epochs": 20 + 30 * num_kills,
                "batch_size": max(2, num_ranks),
                "log_every": 1,
                "ema_decay": 0.99,
                "swa_epochs": 5,
            },
            "snapshot": {"every_min": 0.02, "keep_last": 2, "keep_best": 2},
        }
    )


def _create(recipe: Recipe, site: Site, name: str) -> Run:
    return create_run(recipe, site, name)[0]


def _submit(run: Run) -> None:
    submit_folds(run, run.read_config(), [_FOLD])


def _killed(run: Run, site: Site, num_kills: int, chance: random.Random) -> Iterator[Kill]:
    """Interrupt a run repeatedly, each time while it trains, and then let it finish."""
    fold, ways = run.fold(_FOLD), _ways(site)
    order = itertools.cycle(chance.sample(list(ways), len(ways)))
    _submit(run)
    with bar("killing", num_kills) as advance:
        for way in itertools.islice(order, num_kills):
            attempt = _new_step(run, 0)
            time.sleep(chance.uniform(0, 1))
            if fold.done.exists():
                break
            ways[way](attempt)
            killed_at = time.time()
            _wait(run, partial(_has_left, fold, attempt), "to end")
            last = max(_steps(attempt))
            if _state(fold).state not in ALIVE:  # otherwise the scheduler, or the end of the job, starts it again
                _submit(run)
            later = _new_step(run, last)
            rows = [row for row in read_json_lines(later.telemetry) if row["step"] > last]
            if rows:
                yield Kill(way, last + 1 - min(_steps(later)), rows[0]["time"] - killed_at)
            advance(1)
    _wait(run, fold.done.exists, "to finish")


def _has_left(fold: Fold, attempt: Attempt) -> bool:
    return fold.attempts()[-1].number > attempt.number or _state(fold).state not in ALIVE


def _state(fold: Fold) -> FoldState:
    """Return the state of the fold, with what the scheduler knows of it."""
    return next(row for row in overview([fold.run])[fold.run] if row.fold == fold.key)


def _new_step(run: Run, last: int) -> Attempt:
    """Wait until an attempt has made a step beyond `last`, or the fold is done; return the newest attempt."""
    fold = run.fold(_FOLD)

    def made() -> bool:
        attempts = fold.attempts()
        return fold.done.exists() or bool(attempts and max(_steps(attempts[-1]), default=0) > last)

    _wait(run, made, "to make steps")
    return fold.attempts()[-1]


def _steps(attempt: Attempt) -> list[int]:
    return [row["step"] for row in read_json_lines(attempt.metrics) if "train/loss" in row]


def _wait(run: Run, condition: Callable[[], object], what: str) -> None:
    """Wait for a condition, as long as new steps appear or the job is queued."""
    fold = run.fold(_FOLD)
    seen, end, poll_s = -1, 0.0, 1.0 if scheduler_of(site_of(run)).CAPABILITIES.has_queue else 0.02
    while not condition():
        state = _state(fold)
        if state.step != seen or state.state == "waiting":
            seen, end = state.step, time.monotonic() + _PATIENCE_S
        if time.monotonic() > end:
            raise TrainingError(
                f"expected {run.name} {what}, found it {state.state} ({state.reason}) at step {state.step} for "
                f"{_PATIENCE_S:.0f} s; read its logs in {run.path}"
            )
        time.sleep(poll_s)


def result_of(fold: Fold) -> dict[str, Any]:
    """Return what interruptions must not change: digests and scores of the weights, rows of metrics, last step."""
    done = fold.read_done()
    assert done is not None
    weights = {name: {key: entry[key] for key in ("sha256", "dice")} for name, entry in done["weights"].items()}
    return {"weights": weights, "rows": fold_metrics(fold), "step": done["step"]}


def _send(number: signal.Signals) -> Callable[[Attempt], None]:
    return lambda attempt: os.kill(read_hint(attempt.job)["pid"], number)


def _kill_when(condition: Callable[[Path, int], bool]) -> Callable[[Attempt], None]:
    """Return a function that kills a process at the moment when `condition` holds for its folder of snapshots."""

    def kill(attempt: Attempt) -> None:
        fold = Fold(attempt.path.parent.parent)
        before, end = len(list(fold.snapshots.glob("*.pt"))), time.monotonic() + 10
        newest = fold.all_snapshots()[0].step if before else 0
        while not condition(fold.snapshots, newest) and not fold.done.exists() and time.monotonic() < end:
            pass
        _send(signal.SIGKILL)(attempt)

    return kill


def _writing(snapshots: Path, _newest: int) -> bool:
    return any(snapshots.glob(".*.tmp"))


def _written(snapshots: Path, newest: int) -> bool:
    return any(int(path.name[4:12]) > newest for path in snapshots.glob("step*.pt"))


def _walltime(attempt: Attempt) -> None:
    """Set the end of the job's walltime to the past (see `contrails.train.stop`)."""
    run = Fold(attempt.path.parent.parent).run
    # 0.0 is in the past for the monotonic clock of every host
    write_atomic(run.clock(read_hint(attempt.job)["job_id"]), to_json({"end": 0.0}))


def _kill_launcher(attempt: Attempt) -> None:
    os.kill(psutil.Process(read_hint(attempt.job)["pid"]).ppid(), signal.SIGKILL)


def _ways(site: Site) -> dict[str, Callable[[Attempt], None]]:
    """Return the interruptions that are possible at a site, by name."""
    scheduler = scheduler_of(site)
    if scheduler.CAPABILITIES.runs_here:
        return WAYS
    interruptions = scheduler.interruptions()
    return {name: partial(_to_job, interrupt) for name, interrupt in interruptions.items()} | {"walltime": _walltime}


def _to_job(interrupt: Callable[[Reference], object], attempt: Attempt) -> None:
    fold = Fold(attempt.path.parent.parent)
    job = last_submission(fold.run, fold.key)
    assert job is not None
    interrupt(reference(fold.run, job))


WAYS: dict[str, Callable[[Attempt], None]] = {
    "SIGKILL": _send(signal.SIGKILL),
    "SIGKILL while a snapshot is written": _kill_when(_writing),
    "SIGKILL just after a snapshot": _kill_when(_written),
    "SIGKILL of the launcher": _kill_launcher,
    "SIGTERM": _send(signal.SIGTERM),
    "SIGUSR1": _send(signal.SIGUSR1),
    "SIGUSR2": _send(signal.SIGUSR2),
    "SIGINT": _send(signal.SIGINT),
    "walltime": _walltime,
}
"""The interruptions on this machine, by name; each gets the newest attempt of the fold."""
