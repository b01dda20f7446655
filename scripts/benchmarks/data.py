"""The data path beside its peers: preparing, opening, sharing, batches, and the time that a training waits for them."""

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import loaders
import numpy as np
import psutil
import torch
from table import Result, against, rates, show

from contrails.cluster.queue.freeze import ALLOCATOR
from contrails.dataset.pack import pack
from contrails.dataset.store import Dataset, open_dataset
from contrails.inputs.batches import Source
from contrails.inputs.composites import Composite, channels_of
from contrails.inputs.sampling import Selection
from contrails.recipe.data import DataSection
from contrails.runs.folder import Run
from contrails.sources.goes import make_plan

NUM_RECORDS, SIZE, BATCH, WORKERS = 256, 256, 16, 2
SIZES = (100, 1_000, 10_000)
ROUNDING = "load, check and round"


def main() -> None:
    if not os.environ.keys() >= ALLOCATOR.keys():  # as jobs have it, for the peers too
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_records(folder / "raw" / "train")
        path = folder / "data.h5"
        pack(make_plan(folder / "raw", "train", (11, 14, 15), (4,)), path, WORKERS)
        results = [
            *integer_batches(folder, path),
            *model_batches(folder, path),
            *preparing(folder),
            *cost_by_size(folder),
            opening(folder / "10000.h5"),
            sharing(folder / "10000.h5"),
            waiting(folder, path),
        ]
    show(f"data: records of 3 x {SIZE} x {SIZE} with votes, batches of {BATCH}, {os.cpu_count()} cores", results)


def integer_batches(folder: Path, path: Path) -> Iterator[Result]:
    """Bands and votes as they are stored, shuffled, gathered into reused buffers."""
    dataset = open_dataset(path)
    buffer, parts = source_of_ash(dataset).buffers(1)[0], shuffled(NUM_RECORDS)
    bands, votes = np.array(dataset.bands), np.array(dataset.votes)
    to_bands, to_votes = np.empty_like(bands[:BATCH]), np.empty_like(votes[:BATCH])

    def ours() -> int:
        iterator = iter(parts)
        while buffer.gather(iterator) is not None:
            pass
        return NUM_RECORDS

    def plain_copy() -> int:
        for start in range(0, NUM_RECORDS, BATCH):
            np.copyto(to_bands, bands[start : start + BATCH])
            np.copyto(to_votes, votes[start : start + BATCH])
        return NUM_RECORDS

    measured = rates({"ours": ours, "plain copy": plain_copy} | peers(folder, path, ready=False))
    goals: dict[str, float | None] = {
        ".npy files": 80,
        "h5py, opened per item": 30,
        "h5py, kept open": None,
        "arrays in RAM": 10,
    }
    goals |= {"arrays in RAM, no workers": None, "plain copy": 0.8}
    return against("integer batches", measured, goals)


def model_batches(folder: Path, path: Path) -> Iterator[Result]:
    """Ash composite and share of annotators in float32, on the CPU."""
    source, parts = source_of_ash(open_dataset(path)), shuffled(NUM_RECORDS)

    def ours() -> int:
        return sum(len(batch.inputs) for batch in source.batches(parts))

    measured = rates({"ours": ours} | peers(folder, path, ready=True))
    goals = {".npy files": 5, "h5py, opened per item": 3, "h5py, kept open": None, "arrays in RAM": 1.5}
    return against("batches for the model", measured, goals | {"arrays in RAM, no workers": None})


def peers(folder: Path, path: Path, *, ready: bool) -> dict[str, Callable[[], int]]:
    dataset = open_dataset(path)
    arrays = loaders.in_ram(np.array(dataset.bands), np.array(dataset.votes))
    reads = {
        ".npy files": (loaders.npy(folder / "raw" / "train"), WORKERS),
        "h5py, opened per item": (loaders.opened_each_time(path), WORKERS),
        "h5py, kept open": (loaders.kept_open(path), WORKERS),
        "arrays in RAM": (arrays, WORKERS),
        "arrays in RAM, no workers": (arrays, 0),
    }
    return {
        name: loaders.epoch(read, NUM_RECORDS, BATCH, workers, ready=ready) for name, (read, workers) in reads.items()
    }


def preparing(folder: Path) -> Iterator[Result]:
    """`contrails prepare` beside processes that only load, check and round."""
    few, many = folder / "raw", linked_records(folder, 1_000)
    measured = rates(prepare_and_peer(few, lambda: evict(few)))
    yield from against("prepare, records read from the disk,", measured, {ROUNDING: 0.8})
    measured = rates(prepare_and_peer(many, lambda: None))
    yield from against("prepare, records in the page cache,", measured, {ROUNDING: 0.8})


def prepare_and_peer(raw: Path, before: Callable[[], None]) -> dict[str, Callable[[], int]]:
    """Return both as commands, which return the number of records."""
    out, count = raw / "out.h5", len(list((raw / "train").iterdir()))
    commands = {
        "ours": ["-m", "contrails", "prepare", str(raw), str(out), "--workers", str(WORKERS)],
        ROUNDING: [str(Path(__file__).with_name("rounding.py")), str(raw / "train"), str(WORKERS)],
    }

    def run(arguments: list[str]) -> int:
        out.unlink(missing_ok=True)
        before()
        subprocess.run([sys.executable, *arguments], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        return count

    return {name: functools.partial(run, arguments) for name, arguments in commands.items()}


def evict(raw: Path) -> None:
    """Have the kernel forget the cached pages of raw records."""
    os.sync()
    for path in raw.glob("train/*/*.npy"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cost_by_size(folder: Path) -> Iterator[Result]:
    """Seconds and peak memory of `contrails prepare`."""
    seconds, memory = [], []
    for count in SIZES:
        command = [
            "prepare",
            str(linked_records(folder, count)),
            str(folder / f"{count}.h5"),
            "--workers",
            str(WORKERS),
        ]
        started = time.perf_counter()
        memory.append(peak_memory([sys.executable, "-m", "contrails", *command]))
        seconds.append(time.perf_counter() - started)
    costs = {f"{count:,} records, s": value for count, value in zip(SIZES, seconds, strict=True)}
    growth = seconds[-1] / seconds[-2] / (SIZES[-1] / SIZES[-2])
    yield Result("prepare, time a record, 10,000 over 1,000", growth, "x", "1.2x", growth <= 1.2, costs)
    costs = {f"{count:,} records, MB": value / 1e6 for count, value in zip(SIZES, memory, strict=True)}
    yield Result("prepare, peak memory", memory[-1] / 1e6, "MB", "1,000 MB", memory[-1] < 1e9, costs)


def linked_records(folder: Path, count: int) -> Path:
    """Return a folder of raw records with names of their own, made of links to the files of the same few."""
    raw = folder / f"raw{count}"
    for index in range(0 if raw.exists() else count):
        record = raw / "train" / f"{index:06d}"
        record.mkdir(parents=True)
        for file in (folder / "raw" / "train" / f"{index % NUM_RECORDS:05d}").iterdir():
            os.link(file, record / file.name)
    return raw


def peak_memory(command: list[str]) -> int:
    """Run a command; return the largest sum of its processes' proportional set sizes, sampled, in bytes."""
    peak = 0
    with psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak = max(peak, sum(proportional(one) for one in [process, *process.children(recursive=True)]))
            time.sleep(0.1)
        assert process.returncode == 0, command
    return peak


def proportional(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # it ended meanwhile
        return 0


def opening(path: Path) -> Result:
    """From the path to the first batch for the model, in a process that has imported everything; pages are cached."""
    np.fromfile(path, np.uint8)
    started = time.perf_counter()
    next(source_of_ash(open_dataset(path)).batches(shuffled(SIZES[-1])))
    seconds = time.perf_counter() - started
    return Result(f"open to first batch, {path.stat().st_size / 1e9:.1f} GB", seconds, "s", "0.5 s", seconds < 0.5)


def sharing(path: Path) -> Result:
    """Five processes that have gone through all records: what their mappings of the file hold in all."""
    code = f"import data; from pathlib import Path; data.hold(Path({str(path)!r}))"
    processes = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(5)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline()
    shared = sum(mapped_bytes(process.pid, path) for process in processes)
    for process in processes:
        process.communicate()
    ratio = shared / path.stat().st_size
    return Result("five processes, summed PSS of the data over the file", ratio, "x", "1.15x", ratio <= 1.15)


def hold(path: Path) -> None:
    """Gather every record once, say so, and wait; runs in a process of its own."""
    buffer, parts = source_of_ash(open_dataset(path)).buffers(1)[0], iter(shuffled(SIZES[-1]))
    while buffer.gather(parts) is not None:
        pass
    print("done", flush=True)
    sys.stdin.read()


def mapped_bytes(pid: int, path: Path) -> int:
    """Return the proportional set size of a process's mappings of a file."""
    maps = psutil.Process(pid).memory_maps(grouped=True)
    return sum(mapping.pss for mapping in maps if mapping.path == str(path))


def waiting(folder: Path, path: Path) -> Result:
    """The share of its time that a training of the default model waits for batches, as it logs it."""
    filelist = folder / "two.csv"
    contrails = [sys.executable, "-m", "contrails"]
    recipe = folder / "recipe.toml"
    recipe.write_text(
        f'[data]\ndataset = "{path}"\nfilelist = "{filelist}"\nlimit = 64\n'
        "[train]\nepochs = 2\nbatch_size = 8\nlog_every = 4\n"
    )
    environment = dict(os.environ) | {"CONTRAILS_RUNS": str(folder / "runs")}
    for command in (["split", str(path), "--folds", "2", "-o", str(filelist)], ["train", str(recipe)]):
        subprocess.run([*contrails, *command], env=environment, check=True, capture_output=True)
    telemetry = Run(folder / "runs" / "recipe").fold("0").attempt(1).telemetry
    share = json.loads(telemetry.read_text().splitlines()[-1])["data_wait_share"]
    return Result("training waits for data", 100 * share, "%", "1 %", share < 0.01)


def source_of_ash(dataset: Dataset) -> Source:
    section = DataSection(dataset=dataset.path, filelist=Path("none"))
    return Source(dataset, (0,), Composite(channels_of(section, dataset.band_names)), torch.device("cpu"))


def shuffled(count: int) -> list[Selection]:
    order = np.random.default_rng(0).permutation(count)
    return [Selection(order[start : start + BATCH]) for start in range(0, count, BATCH)]


def write_records(folder: Path) -> None:
    """Write raw records that look like the real thing to a reader."""
    random = np.random.default_rng(0)
    base = random.normal(280, 8, (SIZE, SIZE, 8)).astype(np.float32)
    for index in range(NUM_RECORDS):
        record = folder / f"{index:05d}"
        record.mkdir(parents=True)
        for band in (11, 14, 15):
            np.save(record / f"band_{band}.npy", base + np.float32(random.normal()))
        np.save(record / "human_individual_masks.npy", random.integers(0, 2, (SIZE, SIZE, 1, 4), np.int32))


if __name__ == "__main__":
    main()
