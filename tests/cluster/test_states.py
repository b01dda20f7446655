"""The state of a fold from its files, damaged ones included."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from contrails.cluster.states import fold_state
from contrails.files import to_json, write_atomic
from contrails.runs import Fold, Run
from contrails.train.attempt import boot_id


@pytest.fixture
def fold(tmp_path: Path) -> Fold:
    return Run(tmp_path / "run").fold("0")


def test_nothing_is_not_submitted(fold: Fold) -> None:
    assert fold_state(fold).state == "not submitted"


def test_done_is_the_truth(fold: Fold) -> None:
    write_atomic(fold.attempt(1).state, to_json({"status": "failed", "num_steps": 9}))
    write_atomic(fold.done, to_json({"attempt": 1, "step": 9, "epoch": 3, "best_dice": 0.5}))
    state = fold_state(fold)
    assert (state.state, state.step, state.num_steps, state.best_dice) == ("done", 9, 9, 0.5)


def test_a_damaged_result_is_said_and_a_damaged_hint_is_nothing(fold: Fold) -> None:
    write_atomic(fold.attempt(1).state, '{"status": "run')
    write_atomic(fold.attempt(1).job, to_json({"host": "elsewhere"}))
    assert fold_state(fold).state == "starting"
    write_atomic(fold.done, '{"attempt": 1, "st')
    state = fold_state(fold)
    assert state.state == "damaged"
    assert "done.json is not JSON" in str(state.reason)


def test_a_failure_keeps_its_reason_and_a_stop_its_step(fold: Fold) -> None:
    write_atomic(fold.attempt(1).state, to_json({"status": "failed", "reason": "DataError: no"}))
    assert fold_state(fold).state == "failed"
    assert str(fold_state(fold).reason).startswith("DataError: no; mend it, then go on with `contrails resume ")
    write_atomic(fold.attempt(2).state, to_json({"status": "stopped", "step": 5, "num_steps": 10}))
    state = fold_state(fold)
    assert (state.state, state.attempt, state.step) == ("stopped", 2, 5)


def test_a_process_that_ended_with_its_launcher_and_without_a_word_is_lost(fold: Fold) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    owner = {"host": socket.gethostname(), "boot_id": boot_id(), "pid_started": 0.0}
    write_atomic(fold.attempt(1).state, to_json({"status": "running", "step": 3}))
    write_atomic(fold.attempt(1).job, to_json(owner | {"pid": os.getpid(), "host": "elsewhere"}))
    assert fold_state(fold).state == "running"
    write_atomic(fold.attempt(1).job, to_json(owner | {"pid": ended.pid}))
    state = fold_state(fold)
    assert (state.state, state.step) == ("lost", 3)
    assert f"go on with `contrails resume {fold.run.typed}`" in str(state.reason)
