"""A user's folder for tests that train folds on PBS: on a fake one, or on the real one of this machine."""

import os
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from contrails.files import read_json, read_json_lines
from contrails.runs import Fold

from fake_pbs import FakePbs
from local_site import Site, eventually

PROFILE = {
    "scheduler": "pbs", "walltime_min": 10, "margin_s": 5, "memory_gb": 2, "device": "cpu", "num_threads": 1,
}  # fmt: skip


class PbsRuns(Site):
    """A user's folder on the cluster; `profile` writes a site profile, `submit` uses it."""

    def __init__(self, root: Path, data: Path, fake: FakePbs | None) -> None:
        super().__init__(root, data)
        self._fake = fake
        stop = self.package / "train" / "stop.py"  # so that a fold need not last long to see the end of its walltime
        stop.write_text(stop.read_text().replace("_REREAD_S = 5.0", "_REREAD_S = 0.1"))
        self.profile("test")

    @property
    def fake(self) -> FakePbs:
        if self._fake is None:
            pytest.skip("needs faults that only the fake PBS makes")
        return self._fake

    def profile(self, name: str, **keys: Any) -> None:
        path = self.root / "jobs" / "sites" / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(tomli_w.dumps(PROFILE | keys))

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

    def wait_for_attempt(self, fold: Fold, number: int) -> None:
        """Wait until an attempt has written a snapshot of its own."""
        eventually(lambda: any(snapshot.attempt == number for snapshot in fold.all_snapshots()))

    def links(self, name: str, key: str = "0") -> list[str]:
        """Return the ids of the links that have started for the job of the newest attempt."""
        path = self.root / "runs" / name / "submitit" / f"{self.job(name, key)}_chain.jsonl"
        return [row["job_id"] for row in read_json_lines(path) if row["event"] == "start"]

    def ends(self, name: str, key: str = "0") -> list[str]:
        """Return why each attempt ended; the one that finished has no such word."""
        return [(read_json(each.ended) or {}).get("cause", "") for each in self.fold(key, name).attempts()]

    def wait_for_done(self, name: str, *keys: str) -> None:
        eventually(lambda: all(self.fold(key, name).done.exists() for key in keys or "0"), 240)

    def _command(self, *arguments: str) -> dict[str, Any]:
        command = super()._command(*arguments)
        path = f"{self._fake.bin}:{os.environ['PATH']}" if self._fake else os.environ["PATH"]
        return command | {"env": command["env"] | {"PATH": path}}

    def end_everything(self) -> None:
        for run in (self.root / "runs").glob("*/run.toml"):
            self.run("cancel", str(run.parent))
        super().end_everything()
