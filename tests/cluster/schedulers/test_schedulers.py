"""What schedulers offer: the same of each, and who uses one asks what it can do, not what it is called."""

import ast
import inspect
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import contrails
from contrails.cluster.schedulers import local, slurm
from contrails.cluster.schedulers import pbs as openpbs
from contrails.cluster.schedulers.base import SCHEDULERS, Request, Scheduler, scheduler_called
from contrails.cluster.schedulers.sites import Site
from contrails.errors import ClusterError
from contrails.processes import Process

from local_site import eventually

_PACKAGE = Path(contrails.__file__).parent
_MODULES: list[Scheduler] = [local, slurm, openpbs]
"""As mypy sees them: each has all that is asked of a scheduler."""
_KNOW_NAMES = {f"cluster/schedulers/{name}.py" for name in ("profiles", "base", "sites", "local")}
"""The table of all schedulers, the choice of the default one, and submitit's own word for the local one."""


def test_every_scheduler_offers_the_same() -> None:
    assert [scheduler_called(name) for name in SCHEDULERS] == _MODULES
    wanted = {name for name in vars(Scheduler) if not name.startswith("_")}
    for module in _MODULES:
        assert wanted <= vars(module).keys()
        assert inspect.getdoc(module)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_queue_is_not_on_this_machine(name: str) -> None:
    can = scheduler_called(name).CAPABILITIES
    assert can.has_queue != can.runs_here
    assert can.starts_again <= can.has_queue


def test_nobody_compares_with_the_name_of_this_machines_scheduler() -> None:
    found = [
        f"{path}:{node.lineno}"
        for path in sorted(_PACKAGE.rglob("*.py"))
        if path.relative_to(_PACKAGE).as_posix() not in _KNOW_NAMES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value == "local"
    ]
    assert found == []
    sites = ast.parse((_PACKAGE / "cluster" / "schedulers" / "sites.py").read_text())
    functions = [node for node in ast.walk(sites) if isinstance(node, ast.FunctionDef)]
    comparing = [
        function.name
        for function in functions
        for node in ast.walk(function)
        if isinstance(node, ast.Compare) and any(ast.unparse(one) == "'local'" for one in node.comparators)
    ]
    assert comparing == ["default_site"]


def test_a_job_of_this_machine_is_known_before_it_works_and_has_a_session_of_its_own(tmp_path: Path) -> None:
    said: list[Any] = []

    def accept(job_id: str, process: Process | None) -> None:
        assert not (folder / f"{job_id}_submitted.pkl").exists()  # without it the job waits
        assert process is not None
        assert not process.is_dead()
        said.append((int(job_id), process.pid, os.getsid(int(job_id))))

    folder, made = tmp_path / "submitit" / "ctf0a1", tmp_path / "made"
    folder.mkdir(parents=True)
    request = Request("ctf0a1", "os:mkdir", (str(made),), environment={"HERE": "1"})
    job_id = local.submit(folder, Site(name="s"), request, said.append, accept)
    try:
        assert said[1] == (int(job_id),) * 3
        eventually(made.is_dir)
        eventually((folder / f"{job_id}_0_result.pkl").exists)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(int(job_id), signal.SIGKILL)


def test_a_job_that_cannot_be_started_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "submitit" / "ctf0a1"
    folder.mkdir(parents=True)
    monkeypatch.setattr("sys.executable", "/no/such/python")
    with pytest.raises(ClusterError, match="the job ctf0a1 could not be started: No such file or directory"):
        local.submit(folder, Site(name="s"), Request("ctf0a1", "builtins:print", ()), lambda _: None, lambda *_: None)
