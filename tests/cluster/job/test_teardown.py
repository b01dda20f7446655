"""The end of a batch script: what it writes and decides, and what a job that takes another one's place asks for."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from conftest import MakeRun

from contrails.cluster.ends import read_end, write_end
from contrails.cluster.job import teardown
from contrails.cluster.job.teardown import _avoided
from contrails.cluster.outcomes import Cause
from contrails.cluster.queue.journal import record, submissions
from contrails.errors import LimitReached
from contrails.files import to_json, write_atomic
from contrails.locks import try_lock
from contrails.recipe.recipe import to_toml
from contrails.runs.folder import Fold, Run
from contrails.submitit_pbs.chain import Chain

from local_site import eventually
from replayed import STANDINGS, Replayed

_WAIT = "[time.sleep(0.05) for _ in iter(lambda: (folder / 'released').exists(), True)]"
_HOOK = f"import sys, time, pathlib; folder = pathlib.Path(sys.argv[1]); (folder / 'started').touch(); {_WAIT}"
"""A command that goes on until the file `released` is there."""


_TELL = ["/bin/sh", "-c", 'echo "$2" >> "$0"']
"""A command that writes into a file, its next argument, which fold it was told of."""

FAR = "7|RUNNING|\n7.batch|RUNNING|4748K\n7.0|FAILED|409600K\n"
NEAR = "7|RUNNING|\n7.batch|RUNNING|4748K\n7.0|FAILED|1992294K\n"
"""What sacct says of a step that has used 0.4 and 1.9 GB of 2 GB."""


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


def leave(fold: Fold, word: str, job_id: str = "7") -> None:
    """Leave a fold as its word says: not begun, silent, handed over, done, cancelled, newer, or ended for a cause."""
    run = fold.run
    match word.partition(" ")[::2]:
        case "not", _:
            return
        case "noted", cause:
            record(run, "ended", name="ctf0a1", cause=cause, start=0)
            return
        case "newer", _:
            record(run, "intent", name="ctf0a2", folds=[fold.key], exclude=[])
            record(run, "submitted", name="ctf0a2", job_id="8")
        case "done", _:
            write_atomic(fold.done, to_json({"attempt": 1, "step": 9, "epoch": 3, "best_dice": 0.5}))
        case "cancelled", _:
            write_atomic(fold.cancelled, "{}")
    write_atomic(fold.attempt(1).job, to_json({"job_id": job_id, "job_name": "ctf0a1", "restart_count": 0}))
    write_atomic(fold.attempt(1).state, to_json({"status": "running"}))
    if word == "handed over":
        write_end(fold, fold.attempt(1), "walltime", handed_over=True)
    elif word not in ("silent", "newer", "done", "cancelled", "tombstone"):
        write_end(fold, fold.attempt(1), cast(Cause, word))


def tear_down(run: Run, keys: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the exit code of the teardown of a launcher that ended with `code`."""
    monkeypatch.setattr(sys, "argv", ["teardown", str(run.path), ",".join(keys), str(code)])
    with pytest.raises(SystemExit) as ended:
        teardown.main()
    return ended.value.code


def cause_of(fold: Fold) -> str:
    """Return why a fold ended, as its attempt or else the journal says it."""
    end = read_end(fold.attempt(1))
    said = submissions(fold.run)[0].fruitless.get(0)
    return f"{end.cause}{' and goes on' * end.handed_over}" if end is not None else said.cause if said else "-"


@pytest.mark.parametrize(
    ("left", "code", "standing", "peak", "causes", "acts", "left_with"),
    [
        # what the launcher could not say any more: by its exit code while Slurm lets the job run
        ("silent", 8, "runs", None, "error", ["told 0"], 8),
        ("silent", 4, "runs", None, "data", ["told 0"], 4),
        ("silent", 137, "runs", FAR, "killed", ["requeued"], 75),
        ("silent", 137, "runs", NEAR, "memory", ["0: 3.0 GB"], 137),
        ("silent", 137, "runs", None, "memory", ["0: 3.0 GB"], 137),  # no accounting
        ("silent", 9, "runs", None, "node", ["0: off n1"], 9),
        ("silent", 11, "runs", None, "gpu_memory", ["requeued"], 75),
        ("silent", 0, "runs", None, "lost", ["requeued"], 75),  # srun says 0 where its slurmstepd was killed
        # else by what Slurm says
        ("silent", 143, "time is over", None, "walltime", ["requeued"], 75),
        ("silent", 137, "time is over", FAR, "walltime", ["requeued"], 75),
        ("silent", 143, "cancelled", None, "cancelled", [], 143),
        ("silent", 143, "requeued", None, "preemption and goes on", [], 143),
        ("silent", 137, "shell killed", FAR, "lost", ["requeued"], 75),
        ("silent", 8, "another's", None, "error", ["told 0"], 8),
        # who said why has said it
        ("memory", 143, "time is over", FAR, "memory", ["0: 3.0 GB"], 143),
        ("error", 137, "runs", FAR, "error", ["told 0"], 137),
        ("killed", 137, "cancelled", FAR, "killed", [], 137),
        # without an attempt the journal says it
        ("not begun", 137, "runs", FAR, "killed", ["requeued"], 75),
        ("not begun", 143, "requeued", None, "preemption", [], 143),
        ("noted memory", 143, "runs", None, "memory", ["0: 3.0 GB"], 143),
        # nothing to do
        ("handed over", 143, "time is over", None, "walltime and goes on", [], 75),
        ("silent", 75, "time is over", None, "-", [], 75),
        ("done", 137, "runs", NEAR, "-", [], 137),
        ("cancelled", 143, "cancelled", None, "-", [], 143),
        ("newer", 137, "runs", NEAR, "memory", ["told 0"], 137),
        # folds of one job
        ("silent,done", 137, "runs", FAR, "killed,-", ["requeued"], 75),
        ("done,cancelled", 143, "runs", None, "-,-", [], 143),
        ("handed over,silent", 8, "runs", None, "walltime and goes on,-", [], 75),
        ("error,killed", 8, "runs", None, "error,killed", ["told 0", "requeued"], 75),
        ("memory,killed", 137, "runs", None, "memory,killed", ["0,1: 3.0 GB"], 137),
        ("memory,node", 9, "runs", None, "memory,node", ["0,1: 3.0 GB off n1"], 9),
        ("error,node", 8, "runs", None, "error,node", ["told 0", "1: off n1"], 8),
        ("newer,killed", 137, "runs", FAR, "killed,killed", ["told 0", "requeued"], 75),
    ],
)  # fmt: skip
def test_what_becomes_of_a_job(
    make_run: MakeRun, slurm: Replayed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    left: str, code: int, standing: str, peak: str | None, causes: str, acts: list[str], left_with: int,
) -> None:  # fmt: skip
    run = run_on(make_run, tmp_path)
    folds = [run.fold(str(number)) for number, _ in enumerate(left.split(","))]
    submit_first(run, [fold.key for fold in folds])
    for fold, word in zip(folds, left.split(","), strict=True):
        leave(fold, word)
    slurm.say({"scontrol --oneliner show job 7": STANDINGS[standing]})
    if peak is not None:
        slurm.say({"sacct * --format=JobID,State,MaxRSS --jobs=7": peak})
    before = len(submissions(run))
    assert tear_down(run, [fold.key for fold in folds], code, monkeypatch) == left_with
    assert [cause_of(fold) for fold in folds] == causes.split(",")
    assert done_by(run, slurm, tmp_path, before) == acts


def run_on(make_run: MakeRun, tmp_path: Path, **keys: Any) -> Run:
    run = make_run()
    site = {"name": "s", "scheduler": "slurm", "memory_gb": 2.0, "on_failed": [*_TELL, str(tmp_path / "told")]} | keys
    write_atomic(run.toml, to_toml(run.read_config().model_copy(update={"site": site})))
    return run


def submit_first(run: Run, keys: list[str], job_id: str = "7", **asked: Any) -> None:
    record(run, "intent", name="ctf0a1", folds=keys, **{"exclude": []} | asked)
    record(run, "submitted", name="ctf0a1", job_id=job_id)


def done_by(run: Run, slurm: Replayed, tmp_path: Path, before: int) -> list[str]:
    """Return what was done: folds that a hook was told of, requeues, and jobs with folds and what they ask for."""
    told = tmp_path / "told"
    done = [f"told {key}" for key in (told.read_text().split() if told.exists() else [])]
    done += ["requeued" for _ in slurm.asked("scontrol requeue 7")]
    for job in submissions(run)[before:]:
        words = [f"{job.memory_gb} GB"] * (job.memory_gb is not None) + [f"off {','.join(job.exclude)}"] * bool(
            job.exclude
        )
        done.append(f"{','.join(job.folds)}: {' '.join(words)}")
        script = next(path.read_text() for path in job.folder(run).glob("*.sh"))
        assert (f"--mem={round((job.memory_gb or 2) * 1024)}M" in script) and all(
            node in script for node in job.exclude
        )
    assert len(slurm.asked("sbatch")) == len(submissions(run)) - before
    return done


@pytest.mark.parametrize(
    ("left", "code", "retries", "causes", "left_with"),
    [
        # the next link follows an exit code that says how: after lack of memory it has more
        ("silent", 137, {}, "memory", 137),
        ("silent", 9, {}, "node", 9),
        ("silent", 0, {}, "lost", 75),
        ("killed", 137, {}, "killed", 75),
        ("error,memory", 8, {}, "error,memory", 137),
        ("memory,node", 8, {}, "memory,node", 137),
        ("handed over", 143, {}, "walltime and goes on", 75),
        # and none follows what is given up
        ("silent", 8, {}, "error", 8),
        ("silent", 137, {"memory": 0}, "memory", 8),
        ("silent", 9, {"node": 0}, "node", 8),
        ("error", 137, {}, "error", 8),
        ("done", 137, {}, "-", 8),
        ("tombstone", 137, {}, "cancelled", 8),
        ("tombstone", 143, {}, "cancelled", 143),
        ("newer", 137, {}, "memory", 8),
    ],
)
def test_what_becomes_of_a_job_on_pbs(
    make_run: MakeRun, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restore_signals: None,
    left: str, code: int, retries: dict[str, int], causes: str, left_with: int,
) -> None:  # fmt: skip
    run = run_on(make_run, tmp_path, scheduler="pbs", retries=retries)
    folds = [run.fold(str(number)) for number, _ in enumerate(left.split(","))]
    submit_first(run, [fold.key for fold in folds], job_id="7.h")
    for fold, word in zip(folds, left.split(","), strict=True):
        leave(fold, word, job_id="7.h")
    if left == "tombstone":
        chain.cancel()
    before = len(submissions(run))
    assert tear_down(run, [fold.key for fold in folds], code, monkeypatch) == left_with
    assert [cause_of(fold) for fold in folds] == causes.split(",")
    assert len(submissions(run)) == before


@pytest.mark.parametrize(
    ("keys", "asked", "cause", "acts"),
    [
        ({"retries": {"killed": 0}}, {}, "killed", ["told 0"]),
        ({"retries": {"killed": 1}}, {}, "killed", ["requeued"]),
        ({"retries": {"node": 0}}, {}, "node", ["told 0"]),
        ({"memory_gb": 6.0}, {}, "memory", ["0: 7.8125 GB"]),  # a node has no more
        ({}, {"memory_gb": 3.0, "exclude": ["n0"]}, "memory", ["0: 3.0 GB off n0"]),  # the first one after progress
        ({}, {"memory_gb": 3.0, "exclude": ["n0"]}, "node", ["0: 3.0 GB off n1"]),
        ({}, {"memory_gb": 3.0, "exclude": ["n0"]}, "killed", ["requeued"]),
    ],
)  # fmt: skip
def test_what_a_job_that_takes_its_place_asks_for(
    make_run: MakeRun, slurm: Replayed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, Any], asked: dict[str, Any], cause: str, acts: list[str],
) -> None:  # fmt: skip
    run = run_on(make_run, tmp_path, **keys)
    submit_first(run, ["0"], **asked)
    leave(run.fold("0"), cause)
    tear_down(run, ["0"], 1, monkeypatch)
    assert done_by(run, slurm, tmp_path, 1) == acts


@pytest.mark.parametrize(
    ("command", "answer", "left_with", "said"),
    [
        # somebody was faster: preemption, or an administrator
        ("scontrol requeue", "Job is pending execution for job 7", 75, ""),
        ("scontrol requeue", "Requested operation is presently disabled for job 7", 1, "job 7 was not requeued; go on"),
        ("scontrol --oneliner show job 7", "slurm_load_jobs error: Invalid job id specified", 1, "was not requeued"),
    ],
)
def test_a_requeue_that_slurm_does_not_do(
    make_run: MakeRun, slurm: Replayed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], command: str, answer: str, left_with: int, said: str,
) -> None:  # fmt: skip
    run = run_on(make_run, tmp_path)
    submit_first(run, ["0"])
    leave(run.fold("0"), "killed")
    slurm.say({command: answer}, code=1)
    assert tear_down(run, ["0"], 1, monkeypatch) == left_with
    assert (said in capsys.readouterr().err) if said else ("requeued" not in capsys.readouterr().err)
    assert not slurm.asked("sbatch")


@pytest.mark.parametrize(("code", "left_with"), [(137, 137), (0, LimitReached.exit_code)])
def test_a_larger_job_that_a_limit_does_not_let_in_is_left_to_others(
    make_run: MakeRun, slurm: Replayed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], code: int, left_with: int,
) -> None:  # fmt: skip
    run = run_on(make_run, tmp_path)
    submit_first(run, ["0"])
    leave(run.fold("0"), "memory")
    slurm.take_jobs(20, range(1, 99), "Batch job submission failed: ... (AssocMaxSubmitJobLimit)")
    assert tear_down(run, ["0"], code, monkeypatch) == left_with
    assert capsys.readouterr().err.count("error: sbatch did not take the job ct") == 2  # the next try is that of others
    _, *left = submissions(run)
    assert left
    assert {(job.folds, job.memory_gb, job.void, job.refusal is not None) for job in left} == {
        (("0",), 3.0, True, True)
    }
