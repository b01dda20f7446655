"""The state of a fold from its files, damaged ones included."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal

import pytest
from conftest import MakeRun

from contrails.cluster.ends import write_end
from contrails.cluster.queue.journal import record
from contrails.cluster.queue.submission import _intend
from contrails.cluster.schedulers.base import Job, Request
from contrails.cluster.schedulers.slurm_text import parse_squeue
from contrails.cluster.status.fold_state import ALIVE, FoldState, fold_state
from contrails.files import to_json, write_atomic
from contrails.processes import process_of
from contrails.runs.folder import Fold, Run


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
    assert str(fold_state(fold).reason).startswith("DataError: no; fix it, then go on with `contrails resume ")
    write_atomic(fold.attempt(2).state, to_json({"status": "stopped", "step": 5, "num_steps": 10}))
    state = fold_state(fold)
    assert (state.state, state.attempt, state.step) == ("stopped", 2, 5)


def test_a_process_that_ended_with_its_launcher_and_without_a_word_is_lost(fold: Fold) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    owner = process_of(ended.pid).to_json()
    write_atomic(fold.attempt(1).state, to_json({"status": "running", "step": 3}))
    write_atomic(fold.attempt(1).job, to_json(owner | {"pid": os.getpid(), "host": "elsewhere"}))
    assert fold_state(fold).state == "running"
    write_atomic(fold.attempt(1).job, to_json(owner))
    state = fold_state(fold)
    assert (state.state, state.step) == ("lost", 3)
    assert f"go on with `contrails resume {fold.run.typed}`" in str(state.reason)


def test_what_trained_before_a_restart_of_the_machine_is_lost_until_it_is_cancelled(fold: Fold) -> None:
    write_atomic(fold.attempt(1).job, to_json(process_of(os.getpid()).to_json() | {"boot_id": "that of yesterday"}))
    write_atomic(fold.attempt(1).state, to_json({"status": "running", "step": 3, "time": time.time()}))
    state = fold_state(fold)
    assert state.state == "lost"
    assert "its machine restarted" in str(state.reason)
    write_atomic(fold.cancelled, "")
    assert fold_state(fold).state == "cancelled"


def test_an_attempt_on_another_machine_is_lost_when_it_is_silent(fold: Fold) -> None:
    attempt = fold.attempt(1)
    write_atomic(attempt.job, to_json(process_of(os.getpid()).to_json() | {"host": "elsewhere"}))
    long_ago, now = time.time() - 200, time.time()
    for said, written, state in ((now, now, "running"), (long_ago, now, "running"), (long_ago, long_ago, "lost")):
        write_atomic(attempt.state, to_json({"status": "running", "time": said}))
        os.utime(attempt.path, (written, written))
        assert fold_state(fold).state == state
    assert "written nothing for 180 s on elsewhere" in str(fold_state(fold).reason)


def test_an_attempt_that_does_not_say_whose_it_is_is_judged_by_its_launcher_and_its_age(fold: Fold) -> None:
    fold.attempt(1).path.mkdir(parents=True)
    assert fold_state(fold).state == "starting"
    os.utime(fold.attempt(1).path, (time.time() - 200,) * 2)
    assert fold_state(fold).state == "lost"
    os.utime(fold.attempt(1).path)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as launcher:
        record(fold.run, "intent", name="a1", folds=["0"], exclude=[])
        record(fold.run, "submitted", name="a1", job_id=str(launcher.pid), process=process_of(launcher.pid).to_json())
        assert fold_state(fold).state == "waiting"
        launcher.kill()
    assert fold_state(fold).state == "lost"


def test_what_to_do_is_said_once_where_the_launcher_has_said_it(fold: Fold) -> None:
    fold.run.path.mkdir()
    launcher = subprocess.Popen(["sleep", "60"])
    record(fold.run, "intent", name="a1", folds=["0"], exclude=[])
    record(fold.run, "submitted", name="a1", job_id="7", process=process_of(launcher.pid).to_json())
    launcher.kill()
    launcher.wait()
    log = fold.run.job_folder("a1") / "7_0_log.err"
    log.parent.mkdir(parents=True)
    step = f"`contrails resume {fold.run.typed}`"
    log.write_text(f"error: fold 0, before it began an attempt: it was killed; go on with {step}\n")
    reason = str(fold_state(fold).reason)
    assert "its job ended before it began an attempt (error: fold 0" in reason
    assert reason.count(step) == 1
    log.unlink()
    assert str(fold_state(fold).reason).endswith(f"attempt; go on with {step}")


def test_a_job_that_waits_on_another_machine_says_where(fold: Fold) -> None:
    launcher = process_of(os.getpid()).to_json() | {"host": "elsewhere"}
    fold.run.path.mkdir()
    record(fold.run, "intent", name="a1", folds=["0"], exclude=[])
    record(fold.run, "submitted", name="a1", job_id=str(os.getpid()), process=launcher)
    state = fold_state(fold)
    assert state.state == "waiting"
    assert "waits for a slot on elsewhere" in str(state.reason)


def test_a_result_that_was_removed_is_lost_not_done(fold: Fold) -> None:
    write_atomic(fold.attempt(1).job, to_json(process_of(os.getpid()).to_json()))
    write_atomic(fold.attempt(1).state, to_json({"status": "done"}))
    assert fold_state(fold).state == "lost"


@pytest.fixture
def submitted(fold: Fold) -> Fold:
    """A fold whose job 12 the scheduler took."""
    fold.path.mkdir(parents=True)
    write_atomic(fold.run.toml, '[site]\nname = "small"\n[recipe.data]\ndataset = "x.h5"\n')
    record(fold.run, "intent", name="ctf0a1", folds=["0"], exclude=[])
    record(fold.run, "submitted", name="ctf0a1", job_id="12")
    return fold


def said(fold: Fold, state: Literal["waiting", "running", "suspended", "ended"], **words: Any) -> FoldState:
    """Return the state of a fold whose job the scheduler calls that."""
    native = words.pop("native", state.upper())
    return fold_state(fold, {"ctf0a1": Job("12", "ctf0a1", state, native, **words)})


def train(fold: Fold, **state: Any) -> None:
    write_atomic(fold.attempt(1).job, to_json({"job_id": "12", "job_name": "ctf0a1", "restart_count": 0, "host": "n1"}))
    write_atomic(fold.attempt(1).state, to_json({"status": "running", "step": 9, "seconds_per_step": 0.1} | state))


def test_an_attempt_that_ended_without_a_word_is_not_called_one_that_never_began(submitted: Fold) -> None:
    train(submitted)
    assert said(submitted, "running").state == "running"
    state = said(submitted, "ended", native="FAILED (JobLaunchFailure)", cause="lost", node="n1")
    assert (state.state, state.cause) == ("lost", "lost")
    assert str(state.reason).startswith(
        "attempt 1 ended without a message at step 9; the scheduler says FAILED (JobLaunchFailure) (lost): go on with "
    )


def test_a_log_is_named_only_where_there_is_one(submitted: Fold) -> None:
    state = said(submitted, "ended", native="CANCELLED", cause="cancelled", never_ran=True)
    assert "before it began an attempt; the scheduler says CANCELLED (cancelled)" in str(state.reason)
    assert "see " not in str(state.reason)
    log = submitted.run.job_folder("ctf0a1") / "12_0_log.err"
    write_atomic(log, "submitit INFO (x)\nmodule: command not found\n")
    state = said(submitted, "ended", native="FAILED (NonZeroExitCode)", cause="error", node="n1")
    assert f"(module: command not found); see {log} (error): fix it" in str(state.reason)


def test_a_job_that_was_refused_after_all_says_what_to_change(submitted: Fold) -> None:
    state = said(submitted, "ended", native="FAILED (BadConstraints)", cause="error", never_ran=True)
    assert state.state == "failed"
    assert f"change the site profile, then go on with `contrails resume {submitted.run.path} --site small`" in str(
        state.reason
    )


def test_a_job_that_waits_for_what_it_can_never_get(submitted: Fold) -> None:
    state = said(submitted, "waiting", native="PENDING (PartitionTimeLimit): too long", stuck=True)
    assert state.state == "waiting"
    assert f"too long: `contrails cancel {submitted.run.path}`, change the site profile, then" in str(state.reason)
    assert str(state.reason).endswith(f"`contrails resume {submitted.run.path} --site small`")


def test_a_suspended_job_is_alive_and_does_not_run(submitted: Fold) -> None:
    train(submitted)
    state = said(submitted, "suspended", native="SUSPENDED: it keeps its node")
    assert (state.state, state.reason) == ("suspended", "SUSPENDED: it keeps its node")
    assert state.state in ALIVE


def test_a_walltime_that_the_start_used_up_is_told_from_a_margin(submitted: Fold) -> None:
    record(submitted.run, "ended", name="ctf0a1", cause="walltime", start=0, lasted_s=55.0)
    state = said(submitted, "ended", native="TIMEOUT", cause="walltime", node="n1")
    assert (state.state, state.cause) == ("failed", "walltime")
    assert "no step was made within 55 s" in str(state.reason)
    assert "raise walltime_min" in str(state.reason)
    train(submitted, status="stopped", reason="stopped while its data were copied", seconds_per_step=None)
    write_end(submitted, submitted.attempt(1), "walltime", lasted_s=58.0)
    assert "no step was made within 55 s" not in str(said(submitted, "ended", cause="walltime", node="n1").reason)
    assert "no step was made within 58 s" in str(said(submitted, "ended", cause="walltime", node="n1").reason)
    train(submitted, status="failed", reason="its whole job ended with exit code 143")
    assert "margin_s" in str(said(submitted, "ended", cause="walltime", node="n1").reason)


def test_the_last_start_of_a_job_counts(submitted: Fold) -> None:
    train(submitted, status="stopped", reason="stopped at step 9 (walltime)")
    write_end(submitted, submitted.attempt(1), "walltime", handed_over=True)
    record(submitted.run, "ended", name="ctf0a1", cause="memory", start=1)
    state = said(submitted, "ended", native="FAILED (NonZeroExitCode)", cause="error", node="n1")
    assert (state.state, state.cause) == ("failed", "memory")
    assert "its job 12 ended before it began another attempt" in str(state.reason)


def test_a_job_that_waits_for_a_run_which_has_failed_names_that_run(make_run: MakeRun) -> None:
    first, second = make_run("first"), make_run("second")
    request = Request("a1", "builtins:print", (), folds=("0",), after={"7": first.submitit / "a1"})
    _intend(second, request, None)
    record(second, "submitted", name="a1", job_id="8")
    found = fold_state(second.fold("0"), {"a1": parse_squeue("8|a1|PENDING|DependencyNeverSatisfied|")[0]})
    assert found.state == "waiting"
    assert f"go on with `contrails resume {first.typed}`, and this run follows; or end it with" in str(found.reason)


def test_a_job_that_was_not_taken_is_refused_until_it_is(fold: Fold) -> None:
    fold.path.mkdir(parents=True)
    record(fold.run, "intent", name="ct1f0a1", folds=["0"], exclude=[])
    record(fold.run, "void", name="ct1f0a1", refusal="qsub: PBS refuses with code 38")
    state = fold_state(fold, {})
    assert (state.state, state.cause) == ("failed", "refused")
    assert str(state.reason).startswith(
        "its job was not accepted: qsub: PBS refuses with code 38 (refused): other jobs"
    )
    record(fold.run, "intent", name="ct1f0a2", folds=["0"], exclude=[])
    record(fold.run, "submitted", name="ct1f0a2", job_id="2.h")
    assert fold_state(fold, {"ct1f0a2": Job("2.h", "ct1f0a2", "waiting", "PENDING")}).state == "waiting"


def test_a_refused_next_job_goes_before_why_the_attempt_ended(fold: Fold) -> None:
    fold.path.mkdir(parents=True)
    record(fold.run, "intent", name="ct1f0a1", folds=["0"], exclude=[])
    record(fold.run, "submitted", name="ct1f0a1", job_id="1.h")
    attempt = fold.attempt(1)
    write_atomic(attempt.job, to_json({"job_id": "1.h", "job_name": "ct1f0a1"}))
    write_atomic(attempt.state, to_json({"status": "stopped", "reason": "saved"}))
    write_end(fold, attempt, "walltime", handed_over=True)
    job = Job("1.h", "ct1f0a1", "ended", "REFUSED (would exceed)", "refused")
    state = fold_state(fold, {"ct1f0a1": job})
    assert state.cause == "refused"
    assert "was not accepted: REFUSED (would exceed)" in str(state.reason)
    assert f"`contrails resume {fold.run.typed}`" in str(state.reason)
