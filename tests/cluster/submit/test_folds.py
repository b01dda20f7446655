"""Which folds are submitted, left alone or put off, and which jobs end with them, with what Slurm prints."""

import time
from typing import Any, cast

import pytest
from conftest import MakeRun

from contrails.cluster.ends import write_end
from contrails.cluster.outcomes import Cause
from contrails.cluster.queue.journal import record, submissions
from contrails.cluster.queue.submission import pass_on
from contrails.cluster.schedulers import slurm as slurm_scheduler
from contrails.cluster.schedulers.base import Scheduler
from contrails.cluster.submit.cancel import cancel_folds
from contrails.cluster.submit.folds import plan_folds, submit_folds
from contrails.errors import ClusterError, LimitReached
from contrails.files import to_json, write_atomic
from contrails.recipe.recipe import to_toml
from contrails.runs.folder import Fold, Run, job_pickle

from replayed import Replayed

LIMIT = "Batch job submission failed: Job violates accounting/QOS policy (AssocMaxSubmitJobLimit)"
DONE = {"attempt": 1, "step": 9, "epoch": 3, "best_dice": 0.5}


@pytest.fixture
def run(make_run: MakeRun, slurm: Replayed, monkeypatch: pytest.MonkeyPatch) -> Run:
    run = make_run()
    site = {"name": "s", "scheduler": "slurm"}
    write_atomic(run.toml, to_toml(run.read_config().model_copy(update={"site": site})))
    slurm.say({"squeue --me": "", "sacct": ""})
    for name in ("SLURM_JOB_NAME", "SLURM_JOB_ID", "SLURMD_NODENAME"):  # this is a login node
        monkeypatch.delenv(name)
    return run


def submit(run: Run, *names: str, folds: str = "0", **asked: Any) -> None:
    """Write down jobs of these names that Slurm took; the number in a name, such as ctf0a1, is the job's."""
    for name in names:
        record(run, "intent", name=name, folds=folds.split(","), exclude=[], **asked)
        record(run, "submitted", name=name, job_id=name[-1])


def train(fold: Fold, end: str = "") -> None:
    """Make the attempt of the job ctf0a7 at a fold, which has ended for a cause or not."""
    cause, goes_on = end.removesuffix(" and goes on"), end.endswith(" and goes on")
    status = "stopped" if goes_on else "failed" if end else "running"
    write_atomic(fold.attempt(1).job, to_json({"job_id": "7", "job_name": "ctf0a7", "restart_count": 0, "host": "n1"}))
    write_atomic(fold.attempt(1).state, to_json({"status": status, "time": time.time()}))
    if end:
        write_end(fold, fold.attempt(1), cast(Cause, cause), handed_over=goes_on)


@pytest.mark.parametrize(
    ("left", "squeue", "sacct", "outcome"),
    [
        ("nothing", "", "", "submitted, job 20"),
        ("done", "7|ctf0a7|RUNNING|None|n1", "", "done"),
        # the scheduler has its job
        ("job", "7|ctf0a7|PENDING|Priority|", "", "waiting"),
        ("job", "7|ctf0a7|PENDING|PartitionTimeLimit|", "", "waiting"),
        ("job", "7|ctf0a7|PENDING|DependencyNeverSatisfied|", "", "waiting"),
        ("job", "7|ctf0a7|REQUEUE_HOLD|JobHoldMaxRequeue|", "", "waiting"),
        ("job", "7|ctf0a7|SUSPENDED|None|n1", "", "suspended"),
        ("job", "7|ctf0a7|RUNNING|None|n1", "", "starting"),
        ("attempt", "7|ctf0a7|RUNNING|None|n1", "", "running"),
        ("attempt", "7|ctf0a7|COMPLETING|None|n1", "", "running"),
        ("preemption and goes on", "7|ctf0a7|PENDING|BeginTime|", "", "waiting"),
        ("preemption and goes on", "7|ctf0a7|COMPLETING|None|n1", "", "starting"),
        ("memory", "7|ctf0a7|RUNNING|None|n1", "", "waiting"),  # its budget is looked at in the end
        ("error", "7|ctf0a7|RUNNING|None|n1", "", "submitted, job 20"),  # the job goes on for other folds
        # it has not
        ("job", "7|ctf0a7|FAILED|BadConstraints|", "", "submitted, job 20"),
        ("job", "7|another|RUNNING|None|n1", "", "submitted, job 20"),
        ("job", "", "7|ctf0a7|CANCELLED by 1000|0:0|n1", "submitted, job 20"),
        ("attempt", "", "7|ctf0a7|NODE_FAIL|0:0|n1", "submitted, job 20"),
        ("preemption and goes on", "", "7|ctf0a7|TIMEOUT|0:0|n1", "submitted, job 20"),
        ("attempt", "", "", "submitted, job 20"),  # as slurmctld was killed
        # a tombstone is forgotten where nobody trains the fold
        ("cancelled", "", "", "submitted, job 20"),
        ("cancelled", "7|ctf0a7|RUNNING|None|n1", "", "submitted, job 20"),
        ("cancelled,attempt", "7|ctf0a7|RUNNING|None|n1", "", "running"),
        # a submission whose answer was lost
        ("intent", "7|ctf0a7|PENDING|Priority|", "", "waiting"),
        ("intent", "", "7|ctf0a7|CANCELLED by 1000|0:0|n1", "submitted, job 20"),
        ("intent", "7|ctf0a7|FAILED|BadConstraints|", "", "submitted, job 20"),
        ("intent", "", "", "submitted, job 20"),
    ],
)  # fmt: skip
def test_what_is_submitted(run: Run, slurm: Replayed, left: str, squeue: str, sacct: str, outcome: str) -> None:
    fold, folder = run.fold("0"), run.job_folder("ctf0a7")
    pickle = folder / "f00d.pkl"
    fold.path.mkdir(parents=True)
    for word in left.split(","):
        if word == "done":
            write_atomic(fold.done, to_json(DONE))
        elif word == "cancelled":
            write_atomic(fold.cancelled, "{}")
        elif word == "intent":
            write_atomic(pickle, b"")
            record(run, "intent", name="ctf0a7", folds=["0"], exclude=[], pickle=str(pickle))
        elif word not in ("nothing", "job"):
            train(fold, "" if word == "attempt" else word)
    if left not in ("nothing", "intent"):
        submit(run, "ctf0a7")
    slurm.say({"squeue --me": squeue, "sacct": sacct})
    assert submit_folds(run, run.read_config(), ["0"]) == {"0": outcome}
    is_submitted = outcome.startswith("submitted")
    assert len(slurm.asked("sbatch")) == is_submitted
    assert fold.cancelled.exists() == ("cancelled" in left and not is_submitted)
    had_job = left != "nothing" and submissions(run)[0].job_id == "7"
    if left == "intent":
        assert had_job == (outcome == "waiting" or "CANCELLED" in sacct)
        assert not pickle.exists()
        assert job_pickle(folder, "7").exists() == had_job
    # what Slurm may keep of the job before ends with it
    assert [line.rpartition("=")[2] for line in slurm.asked("scancel")] == ["ctf0a7"] * (is_submitted and had_job)


@pytest.mark.parametrize(
    ("most", "is_alive", "taken", "put_off"),
    [(9, False, ["0", "1", "all"], []), (1, False, ["0"], ["1", "all"]), (0, True, [], ["0", "1", "all"])],
)
def test_what_a_limit_does_not_let_in_is_put_off_where_others_are_left(
    run: Run, slurm: Replayed, most: int, is_alive: bool, taken: list[str], put_off: list[str]
) -> None:
    if is_alive:
        submit(run, "ctf2a7", folds="2")
        slurm.say({"squeue --me": "7|ctf2a7|PENDING|Priority|"})
    slurm.take_jobs(20, range(most + 1, 99), LIMIT)
    outcomes = submit_folds(run, run.read_config(), ["0", "1", *["2"] * is_alive, "all"])
    assert [key for key, said in outcomes.items() if said.startswith("submitted, job 2")] == taken
    assert [key for key, said in outcomes.items() if said.startswith("not accepted yet (sbatch")] == put_off
    left = [job for job in submissions(run) if job.refusal]
    assert [job.folds for job in left] == [(key,) for key in put_off]
    assert all(job.void and "AssocMaxSubmitJobLimit" in str(job.refusal) for job in left)
    assert len(slurm.asked("sbatch")) == len(taken) + bool(put_off)  # the others are not tried


@pytest.mark.parametrize(("said", "kind"), [(LIMIT, LimitReached), ("Invalid account", ClusterError)])
def test_a_refusal_with_nobody_left_is_an_error(run: Run, slurm: Replayed, said: str, kind: type[ClusterError]) -> None:
    slurm.take_jobs(20, range(1, 99), said)
    with pytest.raises(ClusterError, match=r"doctor --site s") as raised:
        submit_folds(run, run.read_config(), ["0", "1"])
    assert type(raised.value) is kind
    assert [(job.folds, job.void, job.refusal) for job in submissions(run)] == [(("0",), True, None)]


def test_folds_that_are_left_share_jobs(run: Run, slurm: Replayed) -> None:
    write_atomic(run.fold("0").done, to_json(DONE))
    submit(run, "ctf1a7", folds="1")
    slurm.say({"squeue --me": "7|ctf1a7|PENDING|Priority|"})
    keys = ["0", "1", "2", "all"]
    assert plan_folds(run, run.read_config(), keys, 2) == {
        "0": "done, stays as it is",
        "1": "waiting, stays as it is",
        "2": "not submitted, would be submitted in job 1",
        "all": "not submitted, would be submitted in job 1",
    }
    assert not slurm.asked("squeue", "sbatch")
    outcomes = submit_folds(run, run.read_config(), keys, 2)
    assert outcomes == {"0": "done", "1": "waiting", "2": "submitted, job 20", "all": "submitted, job 20"}
    assert submissions(run)[-1].folds == ("2", "all")


@pytest.mark.parametrize(
    ("cancelled", "done", "ended"),
    [
        ("0", "", ["ctf0a1"]),  # ctf0a2 has fold 1 as well, whose launcher sees the tombstone
        ("1", "", []),
        ("0,1", "", ["ctf0a1", "ctf0a2", "ctf1a3"]),  # also a job that was followed, and one whose answer was lost
        ("1", "0", ["ctf0a2", "ctf1a3"]),
        ("2", "", ["ctf2a5"]),
        ("0", "0", ["ctf0a1"]),
    ],
)
def test_which_jobs_end_with_cancelled_folds(
    run: Run, slurm: Replayed, cancelled: str, done: str, ended: list[str]
) -> None:
    for key in "012":
        run.fold(key).path.mkdir(parents=True)
    submit(run, "ctf0a1")
    submit(run, "ctf0a2", folds="0,1")
    record(run, "intent", name="ctf1a3", folds=["0", "1"], exclude=[])
    record(run, "intent", name="ctf1a4", folds=["1"], exclude=[])
    record(run, "void", name="ctf1a4")
    submit(run, "ctf2a5", folds="2")
    for key in filter(None, done.split(",")):
        write_atomic(run.fold(key).done, to_json(DONE))
    keys = cancelled.split(",")
    said = cancel_folds(run, [run.fold(key) for key in keys])
    assert said == {key: "done already" if key in done.split(",") else "cancelled" for key in keys}
    assert [line.rpartition("=")[2] for line in slurm.asked("scancel")] == ended
    assert {key for key in "012" if run.fold(key).cancelled.exists()} == set(keys) - set(done.split(","))


@pytest.mark.parametrize(
    ("jobs", "done", "waits", "changed"),
    [
        ({"ctf0a1": "0"}, "", "afterok:1(unfulfilled)", None),  # it is the newest
        ({"ctf0a1": "0", "ctf0a2": "0"}, "", "afterok:1(failed)", "afterok:2"),
        ({"ctf0a1": "0", "ctf0a2": "0", "ctf0a3": "0"}, "", "afterok:1(failed),afterok:9", "afterok:3,afterok:9"),
        ({"ctf0a1": "0,1", "ctf0a2": "0", "ctf1a3": "1"}, "", "afterok:1(failed)", "afterok:2,afterok:3"),
        ({"ctf0a1": "0,1", "ctf0a2": "0"}, "", "afterok:1(unfulfilled)", "afterok:1,afterok:2"),  # it has fold 1 yet
        ({"ctf0a1": "0,1", "ctf0a2": "0"}, "1", "afterok:1(failed)", "afterok:2"),
        ({"ctf0a1": "0", "ctf0a2": "0"}, "0", "afterok:1(failed)", None),
        ({"ctf0a1": "0", "ctf0a2": "0"}, "", "afterok:9(unfulfilled)", None),
        ({"ctf0a1": "0", "ctf0a2": "0"}, "", "(null)", None),
    ],
)  # fmt: skip
def test_what_waits_for_a_run_waits_for_its_newest_jobs(
    run: Run, slurm: Replayed, jobs: dict[str, str], done: str, waits: str, changed: str | None
) -> None:
    for name, folds in jobs.items():
        submit(run, name, folds=folds)
    for key in filter(None, done.split(",")):
        write_atomic(run.fold(key).done, to_json(DONE))
    slurm.say({"squeue --me --noheader --states=PENDING": f"30|{waits}\n"})
    pass_on(run, cast(Scheduler, slurm_scheduler))
    wanted = [] if changed is None else [f"scontrol update JobId=30 Dependency={changed}"]
    assert slurm.asked("scontrol update") == wanted
