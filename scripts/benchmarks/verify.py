"""What it costs that a job verifies its data while it trains: the same training with the check and without it.

The goal is 2% of a training of 10 minutes over 6 GB, 10 MB/s. What is measured is a shorter training over as much less;
the cost of the check alone is computed for 6 GB.
"""

import hashlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
from table import Result, show

from contrails.cluster.queue.freeze import ALLOCATOR
from contrails.dataset.layout import Header, Values, create, opened, row_offsets, write_columns, write_row
from contrails.dataset.store import open_dataset
from contrails.dataset.verify import RowCheck
from contrails.files import sha256, write_atomic
from contrails.recipe.recipe import Recipe, to_toml
from contrails.runs.config import ComputeSection, DataIdentity, RunConfig
from contrails.runs.folder import Run
from contrails.train.fold import train_fold

RECORDS, SIZE, BANDS = 320, 256, ("b11", "b14", "b15")
MODEL = {"encoder": "resnet18", "encoder_depth": 3, "decoder_channels": (32, 16, 8)}
ROUNDS = 3
WHOLE_GB, WHOLE_S = 6.0, 600.0


def main() -> None:
    if not os.environ.keys() >= ALLOCATOR.keys():  # as jobs have it
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        results = [*beside_none(folder), alone(folder)]
    show(f"verify: {RECORDS} records of 3 x {SIZE} x {SIZE}, one thread, {os.cpu_count()} cores", results)


def write_data(folder: Path) -> None:
    """A dataset of noise with two folds; positives are there to train on."""
    ids = tuple(f"{index:05d}" for index in range(RECORDS))
    header = Header(
        split="train",
        band_names=BANDS,
        frames=(4,),
        size=(SIZE, SIZE),
        with_marks=False,
        record_ids=ids,
        groups=ids,
        timestamps=(0.0,) * RECORDS,
        values=Values("int16", 0.01, 273.15, "K"),
        source="noise",
        label_frame=4,
    )
    path, random, digests = folder / "train.h5", np.random.default_rng(0), {"bands": b"", "votes": b""}
    create(header, path)
    where = row_offsets(path)
    with opened(path) as descriptor:
        for row in range(RECORDS):
            bands = random.integers(-3000, 3000, (1, len(BANDS), SIZE, SIZE), np.int16).tobytes()
            votes = (random.random((SIZE, SIZE)) < 0.05).astype(np.uint8).tobytes()
            for array, payload in (("bands", bands), ("votes", votes)):
                write_row(descriptor, where[array], row, payload)
                digests[array] += hashlib.sha256(payload).digest()
    write_columns(path, bytes([1]) * RECORDS, digests)
    rows = "\n".join(f"{name},{name},{index % 2}" for index, name in enumerate(ids))
    (folder / "folds.csv").write_text(f"record_id,group,fold\n{rows}\n")


def beside_none(folder: Path) -> Iterator[Result]:
    """The whole of a training, in turn; CPU time does not depend on what else the machine does."""
    walls: dict[bool, list[float]] = {True: [], False: []}
    cpus: dict[bool, list[float]] = {True: [], False: []}
    for number in range(2 * ROUNDS + 2):
        checked = number % 2 == 0
        with nullcontext() if checked else unchecked():
            wall, cpu = time.perf_counter(), time.process_time()
            train(folder)
        if number > 1:  # the first ones warm the caches
            walls[checked].append(time.perf_counter() - wall)
            cpus[checked].append(time.process_time() - cpu)
    size = (folder / "train.h5").stat().st_size
    for name, seconds in (("time", walls), ("CPU time", cpus)):
        with_check, without = (statistics.median(seconds[checked]) for checked in (True, False))
        ratio = with_check / without
        costs = {"with, s": with_check, "without, s": without, "MB/s": size / 1e6 / without}
        yield Result(
            f"{name} of a training, over the same without the check", ratio, "x", "1.02x", ratio <= 1.02, costs
        )


@contextmanager
def unchecked() -> Iterator[None]:
    """Train without the check."""
    with patch.object(RowCheck, "start", lambda _: None), patch.object(RowCheck, "finish", lambda *_: None):
        yield


def train(folder: Path) -> None:
    recipe = Recipe.model_validate(
        {
            "data": {"dataset": folder / "train.h5", "filelist": folder / "folds.csv"},
            "model": MODEL,
            "train": {"epochs": 1, "batch_size": 4, "warmup_epochs": 0},
        }
    )
    identity = DataIdentity(
        dataset=open_dataset(recipe.data.dataset).fingerprint, filelist=sha256(recipe.data.filelist), num_folds=2
    )
    compute = ComputeSection(device="cpu", num_threads=1)
    run = Run(Path(tempfile.mkdtemp(dir=folder)) / "run")
    run.create_folder()
    write_atomic(
        run.toml,
        to_toml(RunConfig(recipe=recipe, compute=compute, data=identity, site={"name": "local"}, code="")),
    )
    train_fold(run.fold("0"))


def alone(folder: Path) -> Result:
    """CPU time of the check: what it takes of a training where no core is free."""
    dataset, costs = open_dataset(folder / "train.h5"), []
    for _ in range(ROUNDS):
        since = time.process_time()
        RowCheck([(dataset, np.arange(RECORDS))]).finish(lambda: None)
        costs.append(time.process_time() - since)
    per_gb = statistics.median(costs) / (dataset.path.stat().st_size / 1e9)
    share = 100 * WHOLE_GB * per_gb / WHOLE_S
    name = f"CPU time of the check of {WHOLE_GB:g} GB, of a training of {WHOLE_S / 60:g} minutes (computed)"
    return Result(name, share, "%", "2%", share <= 2, {"s for each GB": per_gb})


if __name__ == "__main__":
    main()
