"""A user's folder for tests that train folds on PBS: on a fake one, or on the real one of this machine."""

import os
from pathlib import Path
from typing import Any

import pytest

from contrails.files import read_json_lines
from contrails.runs import Fold

from fake_pbs import FakePbs
from local_site import ClusterSite, eventually


class PbsRuns(ClusterSite):
    """A user's folder on the cluster."""

    PROFILE = ClusterSite.PROFILE | {"scheduler": "pbs"}

    def __init__(self, root: Path, data: Path, fake: FakePbs | None) -> None:
        super().__init__(root, data)
        self._fake = fake
        stop = self.package / "train" / "stop.py"  # so that a fold need not last long to see the end of its walltime
        stop.write_text(stop.read_text().replace("_REREAD_S = 5.0", "_REREAD_S = 0.1"))

    @property
    def fake(self) -> FakePbs:
        if self._fake is None:
            pytest.skip("needs faults that only the fake PBS makes")
        return self._fake

    def wait_for_attempt(self, fold: Fold, number: int) -> None:
        """Wait until an attempt has written a snapshot of its own."""
        eventually(lambda: any(snapshot.attempt == number for snapshot in fold.all_snapshots()))

    def links(self, name: str, key: str = "0") -> list[str]:
        """Return the ids of the links that have started for the job of the newest attempt."""
        (path,) = (self.root / "runs" / name / "submitit").glob(f"*/{self.job(name, key)}_chain.jsonl")
        return [row["job_id"] for row in read_json_lines(path) if row["event"] == "start"]

    def _command(self, *arguments: str) -> dict[str, Any]:
        command = super()._command(*arguments)
        path = f"{self._fake.bin}:{os.environ['PATH']}" if self._fake else os.environ["PATH"]
        return command | {"env": command["env"] | {"PATH": path}}

    def end_everything(self) -> None:
        for run in (self.root / "runs").glob("*/run.toml"):
            self.run("cancel", str(run.parent))
        super().end_everything()
