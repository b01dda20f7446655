"""Whether a job goes on: its clock, how it hands over, failures in a row, and jobs before it that have ended."""

import time
from collections.abc import Collection
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest

from contrails.cluster.ends import read_end, write_end
from contrails.cluster.job.handover import (
    Clock,
    Progress,
    ended_jobs,
    hand_over,
    is_wanted,
    may_retry,
    num_failures,
    record_silent_end,
)
from contrails.cluster.outcomes import Cause
from contrails.cluster.queue.journal import record, submissions
from contrails.cluster.schedulers import pbs as pbs_scheduler
from contrails.cluster.schedulers import slurm as slurm_scheduler
from contrails.cluster.schedulers.base import Job, Reference, Scheduler, ThisJob
from contrails.cluster.schedulers.sites import Site
from contrails.errors import ClusterError
from contrails.files import read_hint, to_json, write_atomic
from contrails.runs.folder import Fold, Run
from contrails.submitit_pbs.chain import Chain

from replayed import STANDINGS, Replayed


@pytest.fixture
def fold(tmp_path: Path) -> Fold:
    fold = Run(tmp_path / "run").fold("0")
    fold.path.mkdir(parents=True)
    return fold


def submit(fold: Fold, link: int) -> None:
    record(fold.run, "intent", name=f"ctf0a{link}", folds=["0"], exclude=[])
    record(fold.run, "submitted", name=f"ctf0a{link}", job_id=str(link))


def this(link: int, restart: int = 0) -> ThisJob:
    return ThisJob(f"ctf0a{link}", str(link), restart, "n1", (), None)


def train(fold: Fold, number: int, link: int, restart: int, **state: Any) -> None:
    owner = {"job_id": str(link), "job_name": f"ctf0a{link}", "restart_count": restart}
    write_atomic(fold.attempt(number).job, to_json(owner))
    write_atomic(fold.attempt(number).state, to_json({"status": "running"} | state))


def snapshot(fold: Fold, step: int, attempt: int) -> None:
    write_atomic(fold.snapshot(step, attempt, "0" * 16), b"")


def test_kills_after_progress_are_no_kills_in_a_row(fold: Fold) -> None:
    for number in (1, 2, 3):
        submit(fold, number)
        train(fold, number, number, 0)
        snapshot(fold, 10 * number, number)
        write_end(fold, fold.attempt(number), "memory")
        assert num_failures(fold, "memory", this(number)) == 1
    submit(fold, 4)
    train(fold, 4, 4, 0)
    write_end(fold, fold.attempt(4), "memory")
    assert num_failures(fold, "memory", this(4)) == 2


def test_starts_without_an_attempt_count_by_what_they_said(fold: Fold) -> None:
    submit(fold, 1)
    for start, cause in enumerate(("preemption", "preemption", "memory")):
        record(fold.run, "ended", name="ctf0a1", cause=cause, start=start)
    assert num_failures(fold, "memory", this(1, restart=2)) == 1
    submit(fold, 2)
    record(fold.run, "ended", name="ctf0a2", cause="memory", start=0)
    assert num_failures(fold, "memory", this(2)) == 2
    assert may_retry(fold, "memory", this(2), Site(name="s"))
    submit(fold, 3)  # it left no word
    submit(fold, 4)
    assert num_failures(fold, "memory", this(4)) == 4
    assert not may_retry(fold, "memory", this(4), Site(name="s"))


def test_starts_before_the_last_attempt_do_not_count(fold: Fold) -> None:
    submit(fold, 1)
    record(fold.run, "ended", name="ctf0a1", cause="walltime", start=0)
    train(fold, 1, 1, restart=1)
    snapshot(fold, 5, 1)
    write_end(fold, fold.attempt(1), "walltime", handed_over=True)
    assert num_failures(fold, "memory", this(1, restart=2)) == 1
    assert num_failures(fold, "walltime", this(1, restart=2)) == 2


@pytest.mark.parametrize(
    ("link", "end", "wanted"),
    [
        (1, None, True),  # another job's: its fence waits for it
        (2, None, False),
        (2, ("preemption", True), True),
        (2, ("error", False), False),
        (2, ("memory", False), True),
    ],
)
def test_who_is_wanted_is_asked_without_a_trace(
    fold: Fold, link: int, end: tuple[Cause, bool] | None, wanted: bool
) -> None:
    assert is_wanted(fold, this(2, restart=1), Site(name="s"))
    submit(fold, 1)
    submit(fold, 2)
    train(fold, 1, link, 0)
    if end is not None:
        write_end(fold, fold.attempt(1), end[0], handed_over=end[1])
    before = sorted(path.name for path in fold.run.path.rglob("*"))
    assert is_wanted(fold, this(2, restart=1), Site(name="s")) == wanted
    assert sorted(path.name for path in fold.run.path.rglob("*")) == before
    write_atomic(fold.cancelled, "{}")
    assert not is_wanted(fold, this(2, restart=1), Site(name="s"))


def test_a_start_that_left_no_word_is_recorded_and_goes_on_while_it_has_budget(fold: Fold) -> None:
    site = Site.model_validate({"name": "s", "scheduler": "slurm", "retries": {"preemption": 1}})
    submit(fold, 1)
    for start, goes_on in enumerate((True, False)):
        train(fold, start + 1, 1, start)
        record_silent_end(fold, this(1, restart=start + 1), site)
        end = read_end(fold.attempt(start + 1))
        assert end is not None
        assert (end.cause, end.handed_over) == ("preemption", goes_on)
        assert is_wanted(fold, this(1, restart=start + 1), site) == goes_on


@pytest.mark.parametrize(
    ("state", "expected"), [("ended", ["ctf0a1"]), ("running", []), (None, []), ("no answer", [])], ids=str
)
def test_only_a_job_that_the_scheduler_calls_ended_need_not_be_waited_for(
    fold: Fold, state: Any, expected: list[str]
) -> None:
    asked: list[Reference] = []

    class Asked:
        def look(self, jobs: Collection[Reference]) -> dict[str, Job]:
            asked.extend(jobs)
            if state == "no answer":
                raise ClusterError("slurm_load_jobs error")
            return {job.name: Job("1", job.name, state, "") for job in jobs if state is not None}

    submit(fold, 1)
    submit(fold, 2)
    train(fold, 1, 1, 0)
    scheduler = cast(Scheduler, Asked())
    assert ended_jobs([fold], scheduler, this(2)) == expected
    assert [(job.name, job.job_id) for job in asked] == [("ctf0a1", "1")]
    for over in (["stopped"], ["failed"]):
        train(fold, 1, 1, 0, status=over[0])
        assert ended_jobs([fold], scheduler, this(2)) == []
    train(fold, 1, 2, 0)  # of an earlier start of the same job
    assert ended_jobs([fold], scheduler, this(2, restart=1)) == []
    assert len(asked) == 1


def test_a_cause_that_is_never_tried_again_has_no_budget(fold: Fold) -> None:
    causes: tuple[Cause, ...] = ("error", "cancelled")
    submit(fold, 1)
    assert not any(may_retry(fold, cause, this(1), Site(name="s")) for cause in causes)


def say_end(slurm: Replayed, ends_in_s: float | None, name: str = "ctf0a1") -> None:
    """Have squeue say when the job's time is over."""
    end = "N/A" if ends_in_s is None else datetime.fromtimestamp(time.time() + ends_in_s).isoformat(timespec="seconds")
    slurm.say({"squeue --noheader --jobs=7 --format=%j|%e": f"{name}|{end}\n"})


def clock_of(fold: Fold) -> Clock:
    """Return the clock of a job with a margin of a minute."""
    scheduler = cast(Scheduler, slurm_scheduler)
    return Clock(scheduler, scheduler.this_job(), 60.0, fold.run.clock("7"))


@pytest.mark.parametrize(
    ("said", "standing", "ends_in_s", "retries", "requeue", "ends", "goes"),
    [
        # USR2 means what the clock says
        ("stopped", "runs", 1800, {}, "", "preemption and goes on", True),
        ("stopped", "runs", 100, {}, "", "walltime and goes on", True),  # Slurm sends it up to a minute too early
        ("stopped", "runs", None, {}, "", "preemption and goes on", True),
        ("stopped by the clock", "runs", 1800, {}, "", "walltime and goes on", True),
        # TERM means what Slurm says
        ("stopped", "time is over", 1800, {}, "", "walltime and goes on", True),
        ("stopped", "shell killed", 1800, {}, "", "lost and goes on", True),
        ("stopped", "requeued", 1800, {}, "refused", "preemption and goes on", True),
        ("stopped", "cancelled", 1800, {}, "", "cancelled", False),
        ("stopped", "another's", 1800, {}, "refused", "preemption", False),
        # budgets, and a Slurm that does not requeue
        ("stopped", "runs", 1800, {"preemption": 1}, "", "preemption and goes on", True),
        ("stopped", "runs", 1800, {"preemption": 0}, "", "preemption", False),
        ("stopped", "requeued", 1800, {"preemption": 0}, "", "preemption", False),
        ("stopped", "runs", 1800, {}, "refused", "preemption", False),
        # before an attempt the journal says it
        ("not begun", "runs", 1800, {}, "", "preemption", True),
        ("not begun", "runs", 1800, {"preemption": 0}, "", "preemption", False),
        ("not begun", "cancelled", 1800, {}, "", "cancelled", False),
        # folds of one job go on together, as far as their budgets last
        ("stopped,stopped", "runs", 1800, {}, "", "preemption and goes on,preemption and goes on", True),
        ("stopped,failed before", "runs", 1800, {"preemption": 1}, "", "preemption and goes on,preemption", True),
        ("failed before,not begun", "runs", 1800, {"preemption": 1}, "", "preemption,preemption", True),
    ],
)
def test_how_a_job_hands_over(
    fold: Fold,
    slurm: Replayed,
    said: str,
    standing: str,
    ends_in_s: float | None,
    retries: dict[str, int],
    requeue: str,
    ends: str,
    goes: bool,
) -> None:
    folds = [fold.run.fold(str(number)) for number, _ in enumerate(said.split(","))]
    record(fold.run, "intent", name="ctf0a1", folds=[each.key for each in folds], exclude=[])
    record(fold.run, "submitted", name="ctf0a1", job_id="7")
    for each, word in zip(folds, said.split(","), strict=True):
        if word == "failed before":
            train(each, 1, 0, 0)
            write_end(each, each.attempt(1), "preemption")
        if word != "not begun":
            attempt = each.attempt(len(each.attempts()) + 1)
            asked_by = "walltime" if word == "stopped by the clock" else None
            write_atomic(attempt.job, to_json({"job_id": "7", "job_name": "ctf0a1", "restart_count": 0}))
            write_atomic(attempt.state, to_json({"status": "stopped", "asked_by": asked_by}))
    say_end(slurm, ends_in_s)
    slurm.say({"scontrol --oneliner show job 7": STANDINGS[standing]})
    if requeue:
        slurm.say({"scontrol requeue 7": "Requested operation is presently disabled for job 7"}, code=1)
    site = Site.model_validate({"name": "s", "scheduler": "slurm", "walltime_min": 60, "retries": retries})
    assert hand_over(folds, clock_of(fold), site) == goes
    assert [shown_end(each, ends_in_s) for each in folds] == ends.split(",")
    if "requeued" in standing or "cancelled" in standing:
        assert not slurm.asked("scontrol requeue")


def shown_end(fold: Fold, ends_in_s: float | None) -> str:
    """Return why this start ended, which its attempt or else the journal says, with how long it had lasted."""
    attempts = fold.attempts()
    said = read_end(attempts[-1]) if attempts else submissions(fold.run)[0].fruitless[0]
    assert said is not None
    assert said.lasted_s == (None if ends_in_s is None else pytest.approx(3600 - ends_in_s, abs=60))
    return f"{said.cause}{' and goes on' * getattr(said, 'handed_over', False)}"


def test_a_clock_asks_again_before_it_says_that_it_is_time(fold: Fold, slurm: Replayed) -> None:
    say_end(slurm, 1800)
    clock = clock_of(fold)
    asked = len(slurm.asked("squeue"))
    assert not clock.due()
    assert len(slurm.asked("squeue")) == asked
    for ends_in_s, name, is_due in (
        (30, "ctf0a1", True),
        (1800, "ctf0a1", False),  # somebody has given it more
        (None, "ctf0a1", True),  # no word changes nothing
        (1800, "another", True),
    ):
        say_end(slurm, 30)
        clock = clock_of(fold)
        say_end(slurm, ends_in_s, name)
        assert clock.due() == is_due
        left = read_hint(clock.path)["end"] - time.monotonic()
        assert left == pytest.approx(30 if is_due else 1800, abs=25)
    say_end(slurm, None)
    assert not clock_of(fold).path.exists()


def test_the_first_new_snapshot_of_a_start_is_told_to_pbs_once(fold: Fold, chain: Chain) -> None:
    snapshot(fold, 5, 1)
    scheduler = cast(Scheduler, pbs_scheduler)
    progress = Progress(scheduler, scheduler.this_job(), [fold, fold.run.fold("1")])
    for step, told in ((5, 0), (4, 0), (6, 1), (7, 1)):
        snapshot(fold, step, 2)
        progress.note()
        assert [row["event"] for row in chain.rows()] == ["progress"] * told
