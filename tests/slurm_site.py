"""A user's folder for tests on a real Slurm cluster of their own, and the cluster."""

import fcntl
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from contrails.files import read_json
from contrails.runs import Fold

from local_site import Site, eventually
from slurm_cluster import SlurmCluster

PROFILE = {
    "scheduler": "slurm", "partition": "low", "walltime_min": 10, "margin_s": 5, "memory_gb": 2, "device": "cpu",
    "num_threads": 1,
}  # fmt: skip


@contextmanager
def only_cluster() -> Iterator[SlurmCluster]:
    """Give the one cluster that fits on this machine's ports; others wait."""
    with (Path(tempfile.gettempdir()) / "contrails-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # not below pytest's folders: they are deep, and a socket's path is short
        with tempfile.TemporaryDirectory(prefix="slurm-", ignore_cleanup_errors=True) as folder:
            cluster = SlurmCluster(Path(folder))
            try:
                yield cluster
            finally:
                cluster.stop()


class SlurmSite(Site):
    """A user's folder on the cluster; `profile` writes a site profile, `submit` uses it."""

    def __init__(self, root: Path, data: Path, cluster: SlurmCluster) -> None:
        super().__init__(root, data)
        self.cluster = cluster
        self.profile("test")

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

    def squeue(self, *arguments: str) -> list[str]:
        return self.cluster.command("squeue", "--noheader", *arguments).split()

    def wait_for_done(self, name: str, *keys: str) -> None:
        eventually(lambda: all(self.fold(key, name).done.exists() for key in keys or "0"), 240)

    def ends(self, name: str, key: str = "0") -> list[str]:
        """Return why each attempt ended; the one that finished has no such word."""
        return [(read_json(each.ended) or {}).get("cause", "") for each in self.fold(key, name).attempts()]

    def _command(self, *arguments: str) -> dict[str, Any]:
        command = super()._command(*arguments)
        return command | {"env": command["env"] | {"SLURM_CONF": str(self.cluster.conf)}}

    def end_everything(self) -> None:
        subprocess.run(["scancel", "--me"], env=self.cluster.environment(), check=False)
        super().end_everything()


def weights(fold: Fold) -> dict[str, str]:
    """Return the digests of a finished fold's weights."""
    done = json.loads(fold.done.read_text())
    return {name: entry["sha256"] for name, entry in done["weights"].items()}


def fresh_path(folder: Path, **scripts: str) -> str:
    """Return a PATH on which commands of these names run these shell lines instead."""
    folder.mkdir()
    for name, lines in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{lines}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"
