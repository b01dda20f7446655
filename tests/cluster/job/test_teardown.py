"""The end of a batch script: what it writes and decides, and what a job that takes another one's place asks for."""

import json
import os
import subprocess
import sys
from pathlib import Path

from conftest import MakeRun

from contrails.cluster.ends import read_end
from contrails.cluster.job.teardown import _avoided
from contrails.cluster.queue.journal import record
from contrails.files import to_json, write_atomic
from contrails.locks import try_lock
from contrails.recipe.recipe import to_toml
from contrails.runs.folder import Run

from local_site import eventually

_WAIT = "[time.sleep(0.05) for _ in iter(lambda: (folder / 'released').exists(), True)]"
_HOOK = f"import sys, time, pathlib; folder = pathlib.Path(sys.argv[1]); (folder / 'started').touch(); {_WAIT}"
"""A command that goes on until the file `released` is there."""


def test_nodes_are_avoided_for_failures_in_a_row_alone() -> None:
    assert _avoided((), "n1", 1) == ("n1",)
    assert _avoided(("n1",), "n2", 2) == ("n1", "n2")
    assert _avoided(("n1", "n2"), "n3", 3) == ("n1", "n2", "n3")
    assert _avoided(("n1", "n2"), "n3", 1) == ("n3",)  # there was a new snapshot between


def test_others_may_submit_while_a_hook_runs(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    site = {"name": "s", "scheduler": "slurm", "on_failed": [sys.executable, "-c", _HOOK, str(tmp_path)]}
    write_atomic(run.toml, to_toml(run.read_config().model_copy(update={"site": site})))
    train(run, "0")
    # without Slurm's commands on the PATH the job is taken for one that Slurm lets run
    environment = dict(os.environ) | {"PATH": "", "SLURM_JOB_NAME": "ctf0a1", "SLURM_JOB_ID": "7"}
    command = [sys.executable, "-m", "contrails.cluster.job.teardown", str(run.path), "0", "1"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as teardown:
        try:
            eventually(lambda: (tmp_path / "started").exists() or teardown.poll() is not None)
            assert teardown.poll() is None
            with run.lock.open("a") as file:
                assert try_lock(file.fileno(), run.lock)
        finally:
            (tmp_path / "released").touch()
        _, said = teardown.communicate(timeout=120)
    assert teardown.returncode == 1, said
    end = read_end(run.fold("0").attempt(1))
    assert end is not None, said
    assert (end.cause, end.handed_over) == ("error", False)


def train(run: Run, key: str) -> None:
    """Make the attempt of a job that has ended without a word."""
    record(run, "intent", name="ctf0a1", folds=[key], exclude=[])
    record(run, "submitted", name="ctf0a1", job_id="7")
    attempt = run.fold(key).attempt(1)
    write_atomic(attempt.job, to_json({"job_id": "7", "job_name": "ctf0a1", "restart_count": 0}))
    write_atomic(attempt.state, json.dumps({"status": "running"}))
