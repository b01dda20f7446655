"""The start of a job on a slow shared disk: from the environment on it, and from the archive unpacked on the node.

A library in C delays each open on the shared disk by 2 ms and counts them. The node's own disk is not delayed.
"""

import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from table import Result, left_out, show
from work import new_run

from contrails.cluster.check.drill import make_data
from contrails.cluster.environment import archive_variables
from contrails.cluster.queue.freeze import freeze_code, job_environment
from contrails.files import read_json_lines, write_atomic
from contrails.recipe.recipe import Recipe, to_toml
from contrails.runs.folder import Run

DELAY_MS = 2.0
ROUNDS = 3
CLONE = Path(__file__).parents[2]
TITLE = f"start: from the first process of a job to its first step; {DELAY_MS:g} ms per open on the shared disk"
_JOB = "import sys; from contrails.cluster.job.launch import run_folds; run_folds(sys.argv[1], ['0'])"


@dataclass(frozen=True)
class Start:
    """One start; `opened` counts files, libraries and folders, `shared` those of them on the shared disk.

    `cpu_s` is that of the whole job, which ends after one step, a validation of two records and its files.
    """

    wall_s: float
    cpu_s: float
    opened: int
    shared: int


class Node:
    """A shared disk with data and runs, and the disk of a node."""

    def __init__(self, folder: Path) -> None:
        self.shared, self.own, self._library = folder / "shared", folder / "own", folder / "slow_disk.so"
        self._counts, self._number = folder / "counts", 0
        make_data(self.shared / "data")
        source = Path(__file__).with_name("slow_disk.c")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", self._library, source, "-ldl"], check=True)

    def start(self, delay_ms: float, archive: Path | None = None) -> Start:
        """Run a job of one step, from the environment in the archive if one is given."""
        self._number += 1
        run = self._new_run(f"run{self._number}")
        self._counts.write_bytes(bytes(16))
        environment = dict(os.environ) | job_environment(run, 1) | archive_variables(archive, self.own)
        # Python files that were never imported before would be compiled by the first start alone
        subprocess.run([sys.executable, "-m", "compileall", "-q", run.code], check=True)
        began = time.time()
        said = self.own.with_name("said")
        with said.open("wb") as output:
            job = subprocess.Popen(
                [sys.executable, "-c", _JOB, str(run.path)],
                env=environment | self._variables(delay_ms),
                stderr=output,
            )
            _, status, used = os.wait4(job.pid, 0)
        job.returncode = os.waitstatus_to_exitcode(status)
        attempt = run.fold("0").attempt(1)
        if job.returncode:
            logs = [path.read_text() for path in (said, attempt.stderr) if path.exists()]
            raise SystemExit(f"the job ended with {job.returncode}: {''.join(logs)}")
        first = read_json_lines(attempt.telemetry)[0]["time"]
        shared, opened = struct.unpack("QQ", self._counts.read_bytes())
        return Start(first - began, used.ru_utime + used.ru_stime, opened, shared)

    def _variables(self, delay_ms: float) -> dict[str, str]:
        folders = {sys.prefix, sys.base_prefix, *sys.path, str(self.shared)}
        below = [folder for folder in folders if folder and not folder.startswith("/usr")]
        return {
            "LD_PRELOAD": str(self._library),
            "LD_AUDIT": str(self._library),
            "SLOW_DISK_BELOW": ":".join(below),
            "SLOW_DISK_US": str(round(1000 * delay_ms)),
            "SLOW_DISK_COUNTS": str(self._counts),
        }

    def _new_run(self, name: str) -> Run:
        recipe = Recipe.model_validate(
            {
                "data": {
                    "dataset": self.shared / "data/train.h5",
                    "filelist": self.shared / "data/folds.csv",
                    "limit": 2,
                },
                "model": {"encoder": "tu-test_resnet", "encoder_depth": 3, "decoder_channels": (16, 8, 8)},
                "train": {"epochs": 1, "batch_size": 2, "log_every": 1, "warmup_epochs": 0},
            }
        )
        run = new_run(self.shared / "runs" / name, recipe, "cpu", 1)
        known = {"code": freeze_code(run), "site": {"name": "local", "folds_at_a_time": 1}}
        write_atomic(run.toml, to_toml(run.read_config().model_copy(update=known)))
        return run


def main() -> None:
    if shutil.which("cc") is None:
        show(TITLE, [left_out("start", "no C compiler: apt-get install gcc")])
        return
    with tempfile.TemporaryDirectory() as name:
        node = Node(Path(name))
        archive = node.shared / f"environment.tar{'.zst' if shutil.which('zstd') else ''}"
        began = time.monotonic()
        subprocess.run([CLONE / "envs/pack", archive], stdout=subprocess.DEVNULL, check=True)
        took = time.monotonic() - began
        show(TITLE, [*measured(node, archive), Result("envs/pack, once", took, "s", "", None, sizes(node, archive))])


def measured(node: Node, archive: Path) -> list[Result]:
    """Measure starts from the shared disk, from the archive for the first time on a node, and after that."""
    node.start(0)  # the files are in the page cache from here on, and the delay is all that opening them costs
    first = node.start(DELAY_MS, archive)
    starts: dict[str, list[tuple[Start, Start]]] = {"plain": [], "next": []}
    for _ in range(ROUNDS):
        for kind, packed in (("plain", None), ("next", archive)):
            starts[kind].append((node.start(DELAY_MS, packed), node.start(0, packed)))
    plain, after = (row("", each).value for each in (starts["plain"], starts["next"]))
    assert plain is not None
    assert after is not None
    ratio = plain / after
    return [
        row("environment on the shared disk", starts["plain"]),
        row("unpacked on the node: its first job, which unpacks it", [(first, None)]),
        row("unpacked on the node: every later job", starts["next"]),
        Result("shared disk over every later job", ratio, "x", "2x", ratio >= 2),
    ]


def row(name: str, starts: list[tuple[Start, Start]] | list[tuple[Start, None]]) -> Result:
    """Return the medians of some starts, each with the delay and, if measured, without."""
    slow, fast = [each for each, _ in starts], [each for _, each in starts if each is not None]
    more = {
        "files opened on the shared disk": statistics.median(each.shared for each in slow),
        "files opened": statistics.median(each.opened for each in slow),
        "CPU, s": statistics.median(each.cpu_s for each in slow),
    }
    if fast:
        more["without the delay, s"] = statistics.median(each.wall_s for each in fast)
    return Result(name, statistics.median(each.wall_s for each in slow), "s", "", None, more)


def sizes(node: Node, archive: Path) -> dict[str, float]:
    """Return the sizes of the archive and of what was unpacked, in MB."""
    (unpacked,) = node.own.glob("environment-*")
    inside = sum(path.lstat().st_size for path in unpacked.rglob("*") if not path.is_dir())
    return {"archive, MB": archive.stat().st_size / 1e6, "unpacked, MB": inside / 1e6}


if __name__ == "__main__":
    main()
