"""What a start of a job counts as: failures in a row, and jobs before it that have ended."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import pytest

from contrails.cluster.ends import read_end, write_end
from contrails.cluster.job.handover import ended_jobs, is_wanted, may_retry, num_failures, record_silent_end
from contrails.cluster.outcomes import Cause
from contrails.cluster.queue.journal import record
from contrails.cluster.schedulers.base import Job, Reference, Scheduler, ThisJob
from contrails.cluster.schedulers.sites import Site
from contrails.errors import ClusterError
from contrails.files import to_json, write_atomic
from contrails.runs.folder import Fold, Run


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
