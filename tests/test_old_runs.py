"""Runs that the code of November 2026 has made are read, resumed and served by today's code.

`runs_before/2026-11.tar.xz` holds what its commands left in /home/user/work: `half`, cancelled at step 88 of 120, and
`whole`, finished and aggregated; both have a frozen copy of that code, whose modules have other names than today's.
"""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

import contrails
from contrails.runs.folder import Run

ARCHIVE = Path(__file__).parent / "runs_before" / "2026-11.tar.xz"
MADE_IN = b"/home/user/work"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the user of then, moved here with all paths in the files of its runs."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    for path in tmp_path.glob("runs/**/*.json*"), tmp_path.glob("runs/*/run.toml"):
        for file in path:
            if "code" not in file.relative_to(tmp_path).parts:
                file.write_bytes(file.read_bytes().replace(MADE_IN, str(tmp_path).encode()))
    return tmp_path


def command(folder: Path, *arguments: str) -> str:
    """Run a command of today's code there and return what it prints."""
    package = Path(contrails.__file__).parent.parent
    environment = dict(os.environ) | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "contrails", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def states(folder: Path, run: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(command(folder, "status", run, "--json"))[run]
    return found


def test_a_run_that_was_half_trained_goes_on_with_its_own_code(folder: Path) -> None:
    run = Run(folder / "runs" / "half")
    (before,) = states(folder, "half")
    assert (before["state"], before["step"], before["num_steps"]) == ("cancelled", 88, 120)
    assert "submitted" in command(folder, "resume", "half")
    command(folder, "submit", "half.toml", "--fold", "0", "--wait")
    (after,) = states(folder, "half")
    assert (after["state"], after["step"], after["attempt"]) == ("done", 120, 2)
    codes = [json.loads(attempt.job.read_text())["code"] for attempt in run.fold("0").attempts()]
    assert codes[0] == codes[1] == run.read_config().code
    assert "half" in command(folder, "runs")


def test_a_run_that_was_finished_is_read_as_it_was(folder: Path) -> None:
    run = Run(folder / "runs" / "whole")
    assert {state["state"] for state in states(folder, "whole")} == {"done"}
    command(folder, "report", "whole")
    assert run.report.stat().st_size > 10_000
    ensemble = folder / "runs" / "whole" / "aggregate" / "default"
    scores = json.loads(command(folder, "evaluate", str(ensemble), "data/validation.h5", "--json"))
    assert 0 <= scores["dice"] <= 1
    command(folder, "predict", str(ensemble), "data/test.h5", "again.csv")
    assert (folder / "again.csv").read_bytes() == (ensemble / "submission.csv").read_bytes()
