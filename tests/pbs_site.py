"""A user's folder on a cluster, for tests that start jobs there: on a fake PBS, or on the real one of this machine.

The tests that break nothing run against a real server where qsub is on the PATH and CONTRAILS_TEST_PBS=1.
"""

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import submitit
from submitit.core import plugins
from submitit.core.core import Job

import contrails
from contrails.submitit_pbs import client
from contrails.submitit_pbs.chain import Chain
from contrails.submitit_pbs.job import PbsJob
from contrails.submitit_pbs.watcher import PbsInfoWatcher

from fake_pbs import FakePbs

REAL = os.environ.get("CONTRAILS_TEST_PBS") == "1" and shutil.which("qsub") is not None
WALLTIME, MARGIN_S = ("00:00:40", 15) if REAL else ("00:00:08", 4)


class Site:
    """A user's folder on a cluster, for the plugin alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "jobs"

    def executor(self, max_num_timeout: int = 3, **parameters: Any) -> submitit.AutoExecutor:
        executor = submitit.AutoExecutor(self.folder, cluster="pbs", pbs_max_num_timeout=max_num_timeout)
        here = (Path(contrails.__file__).parents[1], Path(__file__).parent)
        path = shlex.quote(":".join(map(str, here)))
        executor.update_parameters(
            name="test", timeout_min=1, mem_gb=0.5, pbs_setup=[f"export PYTHONPATH={path}"], **parameters
        )
        return executor

    def events(self, job: Job[Any]) -> list[str]:
        return [row["event"] for row in self.chain(job).rows()]

    def chain(self, job: Job[Any]) -> Chain:
        return Chain(self.folder, job.job_id)

    def links(self, job: Job[Any]) -> list[str]:
        """Return the ids of the links that were submitted after the first."""
        return [row["job_id"] for row in self.chain(job).rows() if row["event"] == "successor"]

    def starts(self, job: Job[Any]) -> list[str]:
        return [row["job_id"] for row in self.chain(job).rows() if row["event"] == "start"]


def is_gone(job_id: str) -> bool:
    """Return whether a job has ended, with a history or without."""
    return client.query([job_id]).get(job_id, {"job_state": "F"})["job_state"] == "F"


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    if "pbs" not in plugins.get_executors():
        pytest.fail("submitit does not know the executor 'pbs': the package is not installed; run envs/build test")
    monkeypatch.setattr(PbsJob, "watcher", PbsInfoWatcher(delay_s=30.0 if REAL else 0.3))
    monkeypatch.setattr(client, "RETRY_S", 0.3)


@pytest.fixture
def site(tmp_path: Path, registered: None, pbs_server: FakePbs | None) -> Site:
    return Site(tmp_path)


@pytest.fixture(scope="session", params=["as it is"] if REAL else ["off", "on"])
def history(request: pytest.FixtureRequest) -> bool:
    """Whether the server keeps what has ended; on a real one its administrator has decided that."""
    return bool(client.server().get("job_history_enable") == "True" if REAL else request.param == "on")


history_does_not_matter = pytest.mark.parametrize("history", ["as it is"] if REAL else ["off"], indirect=True)
"""For tests that nothing but the time they take would differ in."""


@pytest.fixture
def pbs_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, history: bool) -> Iterator[FakePbs | None]:
    """A fake PBS, or None for the real one."""
    if REAL:
        yield None
        return
    fake = FakePbs(tmp_path / "pbs", history=history)
    monkeypatch.setenv("PATH", f"{fake.bin}:{os.environ['PATH']}")
    yield fake
    fake.stop()


@pytest.fixture
def fake(pbs_server: FakePbs | None) -> FakePbs:
    if pbs_server is None:
        pytest.skip("needs faults that only the fake PBS makes")
    return pbs_server
