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

from safetensors.numpy import load_file

from contrails.runs.folder import Fold

from local_site import ClusterSite
from slurm_cluster import SlurmCluster


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


class SlurmSite(ClusterSite):
    """A user's folder on the cluster."""

    PROFILE = ClusterSite.PROFILE | {"scheduler": "slurm", "partition": "low"}

    def __init__(self, root: Path, data: Path, cluster: SlurmCluster) -> None:
        super().__init__(root, data)
        self.cluster = cluster

    def squeue(self, *arguments: str) -> list[str]:
        return self.cluster.command("squeue", "--noheader", *arguments).split()

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


def tensors(fold: Fold) -> dict[str, bytes]:
    """Return the content of a finished fold's last weights, which does not tell the code that trained them."""
    done = json.loads(fold.done.read_text())
    return {name: value.tobytes() for name, value in load_file(fold.weights / done["weights"]["final"]["file"]).items()}


def fresh_path(folder: Path, **scripts: str) -> str:
    """Return a PATH on which commands of these names run these shell lines instead."""
    folder.mkdir()
    for name, lines in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{lines}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"
