"""A user's folder for tests that start real jobs on this machine."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import tomli_w
from conftest import TINY_MODEL

import contrails
from contrails.files import read_json
from contrails.processes import process_in
from contrails.runs.folder import Fold, Run


class Site:
    """A user's folder with a recipe and a copy of the package that can be edited."""

    def __init__(self, root: Path, data: Path) -> None:
        self.root = root
        recipe: dict[str, Any] = {
            "data": {"dataset": str(data / "train.h5"), "filelist": str(data / "three.csv")},
            "model": TINY_MODEL,
            "train": {"epochs": 2, "batch_size": 2, "log_every": 1},
        }
        (root / "tiny.toml").write_text(tomli_w.dumps(recipe))
        shutil.copytree(Path(contrails.__file__).parent, self.package, ignore=shutil.ignore_patterns("__pycache__"))

    @property
    def package(self) -> Path:
        return self.root / "clone" / "contrails"

    def run(self, *arguments: str, seconds: float = 240) -> subprocess.CompletedProcess[str]:
        return subprocess.run(**self._command(*arguments), timeout=seconds, check=False)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command as a terminal does: in a process group of its own, which Ctrl-C reaches as a whole."""
        return subprocess.Popen(**self._command(*arguments), start_new_session=True)

    def _command(self, *arguments: str) -> dict[str, Any]:
        environment = dict(os.environ) | {"PYTHONPATH": str(self.package.parent), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "contrails", *arguments]
        pipe = subprocess.PIPE
        return {"args": command, "cwd": self.root, "env": environment, "stdout": pipe, "stderr": pipe, "text": True}

    def fold(self, key: str, name: str = "tiny") -> Fold:
        return Run(self.root / "runs" / name).fold(key)

    def states(self, name: str = "tiny") -> dict[str, dict[str, Any]]:
        answer = self.run("status", name, "--json")
        assert answer.returncode == 0, answer.stderr
        return {state["fold"]: state for state in json.loads(answer.stdout)[name]}

    def wait_for(self, name: str, fold: str, *states: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        eventually(lambda: found.update(self.states(name)[fold]) or found["state"] in states)
        return found

    def wait_for_snapshot(self, *folds: Fold) -> None:
        """Wait until folds train and have something to go on from."""
        eventually(lambda: all(fold.all_snapshots() for fold in folds))

    def move_launcher(self) -> None:
        """Give the module that jobs start in another name, as an update of the clone may."""
        for path in self.package.rglob("*.py"):
            text = path.read_text()
            if "cluster.job.launch" in text:
                path.write_text(text.replace("cluster.job.launch", "cluster.job.begin"))
        (self.package / "cluster" / "job" / "launch.py").rename(self.package / "cluster" / "job" / "begin.py")

    def end_everything(self) -> None:
        """Kill what a test that failed left behind."""
        for path in (self.root / "runs").glob("*/folds/*/attempts/*/job.json"):
            if (process := process_in(read_json(path))) is not None and not process.is_dead():
                with suppress(ProcessLookupError):  # it has ended meanwhile
                    os.kill(read_json(path)["pid"], signal.SIGKILL)


class ClusterSite(Site):
    """A user's folder on a cluster; `profile` writes a site profile, `submit` uses it."""

    PROFILE: ClassVar[dict[str, Any]] = {
        "walltime_min": 10, "margin_s": 5, "memory_gb": 2, "device": "cpu", "num_threads": 1,
    }  # fmt: skip

    def __init__(self, root: Path, data: Path) -> None:
        super().__init__(root, data)
        self.profile("test")

    def profile(self, name: str, **keys: Any) -> None:
        path = self.root / "jobs" / "sites" / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(tomli_w.dumps(self.PROFILE | keys))

    def submit(self, name: str, *arguments: str, fold: str = "0", site: str = "test") -> str:
        done = self.run("submit", "tiny.toml", "--name", name, "--fold", fold, "--site", site, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def job(self, name: str, key: str = "0") -> str:
        """Return the id of the job that made the newest attempt."""
        job_id: str = read_json(self.fold(key, name).attempts()[-1].job)["job_id"]
        return job_id

    def pid(self, name: str, key: str = "0") -> int:
        pid: int = read_json(self.fold(key, name).attempts()[-1].job)["pid"]
        return pid

    def wait_for_done(self, name: str, *keys: str) -> None:
        eventually(lambda: all(self.fold(key, name).done.exists() for key in keys or "0"), 600)

    def ends(self, name: str, key: str = "0") -> list[str]:
        """Return why each attempt ended; the one that finished has no such word."""
        return [(read_json(each.ended) or {}).get("cause", "") for each in self.fold(key, name).attempts()]


def eventually(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait until `condition` holds; asking takes a quarter of the time at most, so that jobs have the rest."""
    end = time.monotonic() + seconds
    while True:
        asked = time.monotonic()
        if condition():
            return
        assert time.monotonic() < end, "waited too long"
        time.sleep(max(0.05, 3 * (time.monotonic() - asked)))
