"""A fold whose ranks two launchers start, as srun does on two nodes, and the meeting of these ranks."""

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import MakeRun, freeze

from contrails.errors import NodeError, RankError
from contrails.files import read_json
from contrails.runs.folder import Fold, Run
from contrails.train.ranks.meeting import hosted, invited

from local_site import eventually
from slurm_site import fresh_path

LAUNCHER = "import sys; from contrails.cluster.job.launch import run_folds; run_folds(sys.argv[1], ['0'])"


def run_of(make_run: MakeRun) -> Run:
    run = make_run(train={"batch_size": 4, "epochs": 100})
    text = run.toml.read_text().replace("num_ranks = 1", "num_ranks = 2")
    site = 'name = "two"\nscheduler = "slurm"\nnum_nodes = 2\nnum_ranks = 2\nmargin_s = 5\n'
    run.toml.write_text(re.sub(r'name = "local"\n', site, text))
    freeze(run)
    return run


@contextmanager
def launchers(run: Run, start: int, path: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start what srun starts on two nodes."""
    environment = dict(os.environ) | {
        "PATH": path, "PYTHONPATH": str(run.code), "OMP_NUM_THREADS": "1", "SLURM_JOB_NAME": "ctx", "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(start),
    }  # fmt: skip
    command = [sys.executable, "-c", LAUNCHER, str(run.path)]
    nodes = [{"SLURM_NODEID": str(index), "SLURMD_NODENAME": f"n{index}"} for index in range(2)]
    processes = [subprocess.Popen(command, env=environment | node, cwd=run.path) for node in nodes]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def rank_of(launcher: subprocess.Popen[bytes], module: str) -> psutil.Process:
    """Return the process of a module that a launcher has started."""
    children = psutil.Process(launcher.pid).children()
    (found,) = [child for child in children if f"contrails.{module}" in child.cmdline()]
    return found


@pytest.mark.slow
def test_a_process_that_dies_on_either_node_ends_all_ranks(make_run: MakeRun, tmp_path: Path) -> None:
    path = fresh_path(tmp_path / "bin", scontrol="echo no answer >&2; exit 1", squeue="exit 1")
    run = run_of(make_run)
    fold = run.fold("0")
    with launchers(run, 0, path) as nodes:
        eventually(lambda: fold.all_snapshots())
        rank_of(nodes[1], "train.ranks.process").send_signal(signal.SIGKILL)
        assert [node.wait(120) for node in nodes] == [RankError.exit_code, 0]
    assert "one of them ended (on another node" in read_json(fold.attempt(1).state)["reason"]
    assert read_json(fold.attempt(1).ended)["cause"] == "lost"
    with launchers(run, 1, path) as nodes:
        eventually(lambda: fold.all_snapshots()[0].attempt == 2)
        rank = rank_of(nodes[1], "train.ranks.process")
        rank_of(nodes[0], "cluster.job.task").send_signal(signal.SIGKILL)
        assert [node.wait(120) for node in nodes] == [137, 0]
        assert not rank.is_running()
    assert not list(fold.path.glob("attempts/*/meeting.json"))


def meet(fold: Fold, other: Callable[[Any], object]) -> None:
    """Host a meeting of two ranks; `other` gets the store as a process that has connected to it."""
    attempt = fold.attempt(1)
    attempt.path.mkdir(parents=True)
    with hosted(attempt, "127.0.0.1") as meeting:
        assert stat.S_IMODE(attempt.meeting.stat().st_mode) == 0o600
        joining = invited(attempt)
        other(joining)
        meeting.gather(0, 2, lambda: None).set("key", "value")
        assert joining.gather(1, 2, lambda: None).get("key") == b"value"
    assert not attempt.meeting.exists()
    with pytest.raises(RankError, match="rank 0 of attempt 1 has ended before this rank could join it"):
        invited(attempt)


def test_a_rank_that_knows_the_token_joins(tmp_path: Path) -> None:
    meet(Fold(tmp_path / "folds/0"), lambda joining: joining._store.set("1", joining._proof("1")))


def test_a_process_without_the_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RankError, match="rank 1: expected a process that knows the token of this attempt, found"):
        meet(Fold(tmp_path / "folds/0"), lambda joining: joining._store.set("1", "guessed"))
    with (
        pytest.raises(NodeError, match=r"expected to listen at 192\.0\.2\.1, the address of this node"),
        hosted(Fold(tmp_path / "folds/0").attempt(1), "192.0.2.1"),
    ):
        pass
