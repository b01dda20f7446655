import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from contrails.errors import RunError
from contrails.files import read_json, to_json, write_atomic
from contrails.processes import process_in, process_of
from contrails.runs.folder import Fold
from contrails.train import attempt as module
from contrails.train.attempt import Heart, claim_attempt, is_lost
from contrails.train.context import JobContext

JOB = JobContext(scheduler="local", job_id="7")


@pytest.fixture
def fold(tmp_path: Path) -> Fold:
    return Fold(tmp_path / "run" / "folds" / "2")


def claim(fold: Fold, **job: Any) -> int:
    return claim_attempt(fold, replace(JOB, **job), {}, lambda: True).number


def live(fold: Fold, **owner: Any) -> Heart:
    """Claim an attempt for this process, which is alive; `owner` changes its job.json."""
    attempt = claim_attempt(fold, JOB, {}, lambda: True)
    write_atomic(attempt.job, to_json(read_json(attempt.job) | owner))
    heart = Heart(fold, attempt)
    heart.start()
    return heart


def test_attempts_are_numbered_and_say_who_they_are(fold: Fold) -> None:
    heart = live(fold)
    heart.stop(status="stopped")
    assert claim(fold) == 2
    job = read_json(fold.attempt(1).job)
    assert psutil.boot_time() + job["pid_uptime"] == pytest.approx(psutil.Process().create_time(), abs=2)
    assert job["versions"]["torch"]


def test_a_live_attempt_is_left_alone(fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.1)
    heart = live(fold)
    try:
        with pytest.raises(RunError, match=r"trained by attempt 1 .*end it with `contrails cancel .*/run --fold 2`"):
            claim(fold)
        assert [attempt.number for attempt in fold.attempts()] == [1]
    finally:
        heart.stop()


def test_a_dead_process_is_taken_over_at_once(fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    live(fold, **process_of(process.pid).to_json())
    owner = process_in(read_json(fold.attempt(1).job))
    assert owner is not None
    assert not owner.is_dead()
    process.kill()
    process.wait()
    assert owner.is_dead()
    monkeypatch.setattr("contrails.train.attempt.time.sleep", lambda _: pytest.fail("waited for silence"))
    assert claim(fold) == 2


def test_a_number_given_to_another_process_is_dead(fold: Fold) -> None:
    live(fold, pid_uptime=1.0)
    assert claim(fold) == 2


def test_a_process_before_the_last_boot_is_dead(fold: Fold) -> None:
    live(fold, boot_id="that of yesterday")
    assert is_lost(fold.attempt(1), None)
    assert claim(fold) == 2


def test_a_clock_that_is_set_ends_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    owner, booted = process_of(os.getpid()), psutil.boot_time()
    process = psutil.Process()
    started = process.create_time()
    monkeypatch.setattr("psutil.boot_time", lambda: booted + 3600)
    monkeypatch.setattr("psutil.Process.create_time", lambda _: started + 3600)
    assert not owner.is_dead()


def test_an_unknown_host_needs_silence(fold: Fold, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.2)
    live(fold, host="elsewhere")  # its next beat is 20 s away
    started = time.monotonic()
    assert claim(fold) == 2
    assert time.monotonic() - started >= 0.2


def test_a_restart_of_the_same_job_takes_over(fold: Fold) -> None:
    live(fold, host="elsewhere")
    assert claim(fold, restart_count=1) == 2


def test_another_job_with_the_same_id_does_not(fold: Fold) -> None:
    live(fold, host="elsewhere", job_name="first")
    with pytest.raises(RunError, match="stopped while it waited for attempt 1"):
        claim_attempt(fold, replace(JOB, job_name="second", restart_count=1), {}, lambda: False)
    assert claim(fold, job_name="first", restart_count=1) == 2


def test_what_the_scheduler_calls_over_is_taken_over_at_once(fold: Fold) -> None:
    live(fold, host="elsewhere", job_name="first")
    assert claim(fold, job_id="8", job_name="second", ended_jobs=["first"]) == 2


def test_waiting_can_be_stopped(fold: Fold) -> None:
    live(fold, host="elsewhere")
    with pytest.raises(RunError, match="stopped while it waited for attempt 1"):
        claim_attempt(fold, JOB, {}, lambda: False)


def test_a_ghost_learns_that_it_is_one(fold: Fold) -> None:
    heart = live(fold)
    assert not heart.superseded()
    fold.attempt(2).path.mkdir()
    assert heart.superseded()
