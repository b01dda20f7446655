"""The sections of `scripts/bench gpu`, and how each is measured in a process of its own."""

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from gpu_exact import every_architecture, kills, two_processes
from gpu_memory import memory
from gpu_predict import prediction
from gpu_speed import arithmetic, options, packed, steps
from table import Result, left_out
from work import Bench, make_records, start

from contrails.cluster.schedulers.devices import listed_gpus
from contrails.errors import NodeError
from contrails.files import append_json_line, read_json_lines
from contrails.gpu import driver_version, require_kernels


@dataclass(frozen=True)
class Section:
    """A section: its name, what it measures, and its weight when the time that is left is divided."""

    name: str
    measure: Callable[[Bench], Iterator[Result]]
    weight: int


SECTIONS = (
    Section("kills and resume", kills, 18),
    Section("the same gradients in two processes", two_processes, 15),
    Section("a step of training", steps, 20),
    Section("packed folds", packed, 12),
    Section("memory", memory, 8),
    Section("arithmetic", arithmetic, 5),
    Section("options", options, 10),
    Section("every architecture", every_architecture, 10),
    Section("prediction", prediction, 5),
)


def title(device: str) -> str:
    """Return the title of the table."""
    what = f"torch {torch.__version__}, {os.cpu_count()} cores"
    if device == "cpu":
        return f"gpu: the script tried on a CPU with tiny sizes, the figures mean nothing; {what}"
    gpus = ", ".join(gpu.kind for gpu in listed_gpus()) or "unknown"
    return f"gpu: {gpus}, driver {driver_version() or 'unknown'}, CUDA {torch.version.cuda}, {what}"


def measured(folder: Path, kind: str, seconds: float) -> Iterator[list[Result]]:
    """Yield the results of each section; the weights divide the time that the sections before it have left."""
    end, data = time.monotonic() + seconds, folder / "data"
    data.mkdir()
    device = torch.device("cpu") if kind == "cpu" else torch.device("cuda", 0)
    first = start(_prepare, device, data)
    first.join()
    if first.exitcode != 0:
        sys.exit(first.exitcode)
    for number, section in enumerate(SECTIONS):
        now, left = time.monotonic(), sum(other.weight for other in SECTIONS[number:])
        own = folder / f"section-{number}"
        own.mkdir()
        bench = Bench(device, own, data, now, now + max(0.0, end - now) * section.weight / left)
        yield _of_section(section, bench)
        shutil.rmtree(own, ignore_errors=True)


def _prepare(device: torch.device, data: Path) -> None:
    """Check the device and make the records.

    Raises:
        NodeError: there is no such device, or torch has no kernels for it.
    """
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise NodeError("expected a CUDA device, found none; `--device cpu` tries the script itself without one")
        require_kernels(device)
    make_records(data, *((8, 2, 64) if device.type == "cpu" else (512, 16, 256)))


def _of_section(section: Section, bench: Bench) -> list[Result]:
    """Measure a section in a process of its own; what it lacks is a row with the reason."""
    process = start(_write, section, bench)
    try:
        process.join(bench.seconds)
        is_cut = process.is_alive()
    finally:
        process.kill()  # its own processes end with it
        process.join()
    results = [Result(**row) for row in read_json_lines(bench.folder / "results.jsonl")]
    if is_cut:
        results.append(left_out(f"the rest of: {section.name}", f"its {bench.seconds:.0f} s were over"))
    elif process.exitcode != 0:
        said = (bench.folder / "output.log").read_text().strip().splitlines()
        reason = said[-1] if said else f"exit code {process.exitcode}"
        results.append(left_out(f"the rest of: {section.name}", reason))
    return results


def _write(section: Section, bench: Bench) -> None:
    """Write each result as soon as it is there; other output goes to a log."""
    with (bench.folder / "output.log").open("a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    for result in section.measure(bench):
        append_json_line(bench.folder / "results.jsonl", asdict(result))
