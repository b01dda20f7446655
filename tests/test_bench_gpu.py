"""`scripts/bench gpu` without a GPU: every section runs, and what cannot be measured is told with its reason."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

BENCHMARKS = Path(__file__).parents[1] / "scripts" / "benchmarks"

SECTIONS = """
import json, os, signal, sys, time
from dataclasses import asdict
from pathlib import Path
import gpu_sections
from gpu_sections import Section
from table import Result
from work import start

def fine(bench):
    yield Result("fine", 1, "", "1", True)

def fails(bench):
    yield Result("first", 1, "", "1", True)
    raise RuntimeError("expected a GPU, found another")

def killed(bench):
    os.kill(os.getpid(), signal.SIGKILL)
    yield

def sleep(folder):
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(1000)

def endless(bench):
    yield Result("begun", 1, "", "1", True)
    start(sleep, bench.data).join()

gpu_sections._prepare = lambda *_: None
weights = {endless: 1, fine: 40, fails: 40, killed: 40}
gpu_sections.SECTIONS = tuple(Section(each.__name__, each, weight) for each, weight in weights.items())
results = [asdict(row) for rows in gpu_sections.measured(Path(sys.argv[1]), "cpu", 600.0) for row in rows]
print(json.dumps(results))
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    hidden = {"CUDA_VISIBLE_DEVICES": ""}  # as on a machine without a GPU
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS)} | hidden
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, check=False)


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # a container may have nobody who collects these
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_every_section_runs_without_a_gpu() -> None:
    done = run(str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--minutes", "60", "--json")
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    assert {row["note"] for row in rows if row["value"] is None} == {
        "a CPU has none",
        "a CPU has no memory of its own",
        "on a CPU its C++ compiler takes a minute",
    }
    bits = [row for row in rows if row["goal"] in ("1", "2")]
    assert len(bits) == 4
    assert all(row["holds"] for row in bits), bits
    assert all(row["peers"]["kills"] == 1 for row in bits if "kills" in row["name"])
    for what in ("over a bare loop", "folds per hour", "a snapshot stalls", "arithmetic", "fused AdamW", "prediction"):
        assert any(what in row["name"] and row["value"] > 0 for row in rows if row["value"] is not None), what


def test_a_section_that_fails_or_takes_too_long_does_not_end_the_others(tmp_path: Path) -> None:
    done = run("-c", SECTIONS, str(tmp_path))
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    assert [(row["name"], row["note"]) for row in rows] == [
        ("begun", ""),
        ("the rest of: endless", "its 5 s were over"),
        ("fine", ""),
        ("first", ""),
        ("the rest of: fails", "RuntimeError: expected a GPU, found another"),
        ("the rest of: killed", "exit code -9"),
    ]
    pid, end = int((tmp_path / "data" / "pid").read_text()), time.monotonic() + 60
    while is_alive(pid):  # the kernel ends what a section has started, some time after the section
        assert time.monotonic() < end
        time.sleep(0.05)


def test_without_a_gpu_the_script_says_what_to_type() -> None:
    done = run(str(BENCHMARKS / "gpu.py"), "--json")
    assert done.returncode == 9
    assert "expected a CUDA device, found none; `--device cpu` tries the script itself" in done.stderr
    assert json.loads(done.stdout) == []
