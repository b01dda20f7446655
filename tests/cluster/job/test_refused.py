"""What the jobs of a run submit that the scheduler had not taken, with what Slurm prints."""

import time
from typing import cast

import pytest
from conftest import MakeRun

from contrails.cluster.ends import read_end, write_end
from contrails.cluster.job import refused
from contrails.cluster.job.refused import submit_refused
from contrails.cluster.outcomes import Cause
from contrails.cluster.queue.journal import record, submissions
from contrails.cluster.schedulers.sites import site_of
from contrails.errors import LimitReached
from contrails.files import to_json, write_atomic
from contrails.recipe.recipe import to_toml
from contrails.runs.folder import Run

from replayed import Replayed

LIMIT = "Batch job submission failed: Job violates accounting/QOS policy (AssocMaxSubmitJobLimit)"


@pytest.fixture
def run(make_run: MakeRun, slurm: Replayed, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run whose job for fold 0, this one, runs, and whose job for fold 1 was not taken."""
    monkeypatch.setattr(refused, "_RETRY_S", 0.01)
    run = make_run()
    site = {"name": "s", "scheduler": "slurm", "retries": {"memory": 1}}
    write_atomic(run.toml, to_toml(run.read_config().model_copy(update={"site": site})))
    run.fold("0").path.mkdir(parents=True)
    run.fold("1").path.mkdir(parents=True)
    record(run, "intent", name="ctf0a1", folds=["0"], exclude=[])
    record(run, "submitted", name="ctf0a1", job_id="7")
    return run


def refuse(run: Run) -> None:
    record(run, "intent", name="ctf1a2", folds=["1"], exclude=["n0"], memory_gb=3.0)
    record(run, "void", name="ctf1a2", refusal="sbatch: error: AssocMaxSubmitJobLimit")


def train(run: Run, cause: str, silent_s: float) -> None:
    """Make an attempt of an earlier job at fold 1, which has ended for a cause or not."""
    record(run, "intent", name="ctf1a1", folds=["1"], exclude=[])
    record(run, "submitted", name="ctf1a1", job_id="6")
    attempt = run.fold("1").attempt(1)
    write_atomic(attempt.job, to_json({"job_id": "6", "job_name": "ctf1a1", "restart_count": 0}))
    status = "failed" if cause else "running"
    write_atomic(attempt.state, to_json({"status": status, "time": time.time() - silent_s}))
    if cause:
        write_end(run.fold("1"), attempt, cast(Cause, cause))


def go_on(run: Run, *, is_leaving: bool = False) -> None:
    submit_refused(run, run.read_config(), site_of(run), is_leaving=is_leaving)


@pytest.mark.parametrize(
    ("before", "silent_s", "left", "is_submitted", "end"),
    [
        ("", 0, "refused", True, None),
        ("memory", 0, "refused", True, "memory"),
        ("memory,memory", 0, "refused", False, "memory"),  # its budget of one is used up
        ("error", 0, "refused", False, "error"),
        ("silent", 90, "refused", True, "lost"),
        ("silent", 0, "refused", True, "lost"),
        ("", 0, "refused,cancelled", False, None),
        ("", 0, "refused,done", False, None),
        ("", 0, "refused,taken", False, None),  # another job of the run was faster
        ("", 0, "", False, None),
        ("memory", 0, "", False, "memory"),  # its job judges it
        ("silent", 90, "", False, None),
    ],
)
def test_what_was_refused_is_submitted_as_it_was_asked_for(
    run: Run, slurm: Replayed, before: str, silent_s: float, left: str, is_submitted: bool, end: str | None
) -> None:
    fold = run.fold("1")
    for number, cause in enumerate(filter(None, before.split(",")), start=1):
        train(run, "" if cause == "silent" else cause, silent_s)
        if number == 2:
            write_atomic(fold.attempt(2).job, fold.attempt(1).job.read_bytes())
            write_end(fold, fold.attempt(2), cast(Cause, cause))
    for word in filter(None, left.split(",")):
        if word == "refused":
            refuse(run)
        elif word == "taken":
            record(run, "intent", name="ctf1a3", folds=["1"], exclude=[])
            record(run, "submitted", name="ctf1a3", job_id="8")
        else:
            write_atomic(fold.done if word == "done" else fold.cancelled, "{}")
    slurm.say({"squeue --me": "7|ctf0a1|RUNNING|None|n1\n8|ctf1a3|PENDING|Priority|\n6|ctf1a1|RUNNING|None|n2\n"})
    known = len(submissions(run))
    go_on(run)
    again = submissions(run)[known:]
    assert [(job.folds, job.job_id, job.memory_gb, job.exclude) for job in again] == [
        (("1",), "20", 3.0, ("n0",))
    ] * is_submitted
    assert len(slurm.asked("sbatch")) == is_submitted
    said = read_end(fold.attempts()[-1]) if fold.attempts() else None
    assert (said.cause if said is not None else None) == end


def test_without_a_refusal_nobody_is_asked(run: Run, slurm: Replayed) -> None:
    go_on(run)
    assert not slurm.asked("s")


@pytest.mark.parametrize(
    ("squeue", "leaving", "waits"),
    [
        ("8|ctf2a1|RUNNING|None|n2", "ctf2a1", True),
        ("8|ctf2a1|COMPLETING|None|n2", "ctf2a1", True),
        ("8|ctf2a1|RUNNING|None|n2", "", False),  # that one submits it in the end
        ("", "ctf2a1", False),  # it is gone: the limit is not theirs
        ("8|ctf2a1|RUNNING|None|n2\n9|ctf2a2|PENDING|Priority|", "ctf2a1", False),
        ("8|ctf2a1|RUNNING|None|n2\n9|ctf2a2|RUNNING|None|n3", "ctf2a1,ctf2a2", True),
        ("9|ctg0a1|RUNNING|None|n2", "", False),  # what follows the folds submits none
    ],
)
def test_the_last_job_that_leaves_waits_until_the_others_are_gone(
    run: Run, slurm: Replayed, squeue: str, leaving: str, waits: bool
) -> None:
    refuse(run)
    for name, folds, job_id in (("ctf2a1", ["2"], "8"), ("ctf2a2", ["all"], "9"), ("ctg0a1", [], "9")):
        if name in squeue + leaving:
            record(run, "intent", name=name, folds=folds, exclude=[])
            record(run, "submitted", name=name, job_id=job_id)
    for name in filter(None, leaving.split(",")):
        record(run, "leaving", name=name)
    slurm.say({"squeue --me": f"7|ctf0a1|RUNNING|None|n1\n{squeue}\n", "sacct": ""})
    slurm.take_jobs(20, range(1, 3), LIMIT)  # then others are gone
    if waits:
        go_on(run, is_leaving=True)
        assert submissions(run)[-1].job_id == "22"
    else:
        with pytest.raises(LimitReached):
            go_on(run, is_leaving=True)
        assert submissions(run)[-1].refusal is not None
        assert len(slurm.asked("sbatch")) == 1
    assert {job.name for job in submissions(run) if job.is_leaving} == {"ctf0a1", *filter(None, leaving.split(","))}


def test_a_job_that_begins_leaves_a_limit_to_later(run: Run, slurm: Replayed) -> None:
    refuse(run)
    slurm.take_jobs(20, range(1, 99), LIMIT)
    with pytest.raises(LimitReached):
        go_on(run)
    assert not any(job.is_leaving for job in submissions(run))
    assert [job.refusal is not None for job in submissions(run)] == [False, True, True]
