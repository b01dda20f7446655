"""A user's folder for tests that train folds on PBS: on a fake one, or on the real one of this machine."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from contrails.cluster.queue.journal import submissions
from contrails.files import read_json_lines
from contrails.runs.folder import Fold, Run
from contrails.submitit_pbs.client import parse_dsv

from fake_pbs import FakePbs
from local_site import ClusterSite, eventually


class PbsRuns(ClusterSite):
    """A user's folder on the cluster."""

    PROFILE = ClusterSite.PROFILE | {"scheduler": "pbs"}

    def __init__(self, root: Path, data: Path, fake: FakePbs | None) -> None:
        super().__init__(root, data)
        self._fake = fake
        self._before = root / "commands"
        self._before.mkdir()
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

    def pbs(self, *arguments: str) -> str:
        """Return what a command of PBS says, whatever its exit code."""
        done = subprocess.run(arguments, env=self._command()["env"], capture_output=True, text=True, check=False)
        return done.stdout

    def queued(self, name: str) -> dict[str, dict[str, str]]:
        """Return the jobs of a run that wait or run, next links included."""
        found: dict[str, dict[str, str]] = {}
        for job in submissions(Run(self.root / "runs" / name)):
            ids = self.pbs("qselect", "-N", job.name).split()
            found |= parse_dsv(self.pbs("qstat", "-f", "-F", "dsv", *ids)) if ids else {}
        return found

    def first_links(self, name: str) -> list[str]:
        """Return the jobs of a run that wait or run, without next links: two of a fold would double it."""
        jobs = self.queued(name).items()
        return [job_id for job_id, job in jobs if "SUBMITIT_PBS_LINK" not in job.get("Submit_arguments", "")]

    @contextmanager
    def limit(self, num_jobs: int) -> Iterator[None]:
        """Let the site take so many jobs of a user, running and held ones counted; what was there before ends first."""
        eventually(lambda: not self.pbs("qselect"))
        if self._fake is not None:
            self._fake.configure(max_queued=num_jobs)
        else:
            self.pbs("qmgr", "-c", f'set queue workq max_queued = "[u:PBS_GENERIC={num_jobs}]"')
        try:
            yield
        finally:
            if self._fake is not None:
                self._fake.configure(max_queued=0)
            else:
                self.pbs("qmgr", "-c", "unset queue workq max_queued")

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Let one job of the site `whole` run, so that others wait: it asks for a whole node."""
        self.profile("whole", num_cpus=8)
        if self._fake is not None:
            self._fake.configure(slots=1)
        try:
            yield
        finally:
            if self._fake is not None:
                self._fake.configure(slots=4)

    def kill_after(self, command: str) -> None:
        """Have the next call of a command of PBS, outside of jobs, kill who called it once PBS has done its part."""
        path, real = self._before / command, shutil.which(command, path=self._path())
        for other in {"qstat", "qselect", "qdel", "pbsnodes"} - {path.name for path in self._before.iterdir()}:
            (self._before / other).symlink_to(
                str(shutil.which(other, path=self._path()))
            )  # jobs look for all in one folder
        path.write_text(
            f'#!/bin/bash\n[ -z "$PBS_JOBID" ] && rm {shlex.quote(str(path))}.kill 2>/dev/null || exec {real} "$@"\n'
            f'{real} "$@" >/dev/null\nkill -9 $PPID\n'
        )
        path.chmod(0o755)
        path.with_suffix(".kill").touch()

    def _path(self) -> str:
        return f"{self._fake.bin}:{os.environ['PATH']}" if self._fake else os.environ["PATH"]

    def _command(self, *arguments: str) -> dict[str, Any]:
        command = super()._command(*arguments)
        return command | {"env": command["env"] | {"PATH": f"{self._before}:{self._path()}"}}

    def end_everything(self) -> None:
        for run in (self.root / "runs").glob("*/run.toml"):
            self.run("cancel", str(run.parent))
        super().end_everything()
