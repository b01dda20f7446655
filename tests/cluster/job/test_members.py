"""Which folds of a job its start trains, with what code the job leaves, and whether its teardown has anything to do."""

import subprocess
from typing import Any, cast

import pytest
from conftest import MakeRun

from contrails.cluster.ends import read_end, write_end
from contrails.cluster.job import launch
from contrails.cluster.outcomes import Cause
from contrails.cluster.queue.journal import record
from contrails.cluster.queue.requests import fold_request
from contrails.cluster.schedulers.sites import site_of
from contrails.files import to_json, write_atomic
from contrails.recipe.recipe import to_toml
from contrails.runs.folder import Fold, Run
from contrails.train.context import JobContext

from replayed import Replayed


def leave(fold: Fold, word: str) -> None:
    """Leave a fold as the first start of the job did: not begun, done, cancelled, silent, or ended for a cause."""
    fold.path.mkdir(parents=True, exist_ok=True)
    cause, goes_on = word.removesuffix(" and goes on"), word.endswith(" and goes on")
    if word == "done":
        write_atomic(fold.done, to_json({"attempt": 1, "step": 9, "epoch": 3, "best_dice": 0.5}))
    elif word == "cancelled":
        write_atomic(fold.cancelled, "{}")
    elif word != "not begun":
        write_atomic(fold.attempt(1).job, to_json({"job_id": "7", "job_name": "ctf0a1", "restart_count": 0}))
        write_atomic(fold.attempt(1).state, to_json({"status": "running" if word == "silent" else "stopped"}))
        if word != "silent":
            write_end(fold, fold.attempt(1), cast(Cause, cause), handed_over=goes_on)


@pytest.mark.parametrize(
    ("left", "retries", "trained", "codes", "requeues", "left_with"),
    [
        ("not begun,not begun", {}, "01", [0, 0], 0, 0),
        # a start after another trains what that handed over, or left without a word
        ("done,walltime and goes on", {}, "1", [0], 0, 0),
        ("cancelled,preemption and goes on", {}, "1", [0], 0, 0),
        ("error,walltime and goes on", {}, "1", [0], 0, 0),
        ("memory,walltime and goes on", {}, "01", [0, 0], 0, 0),
        ("memory,walltime and goes on", {"memory": 0}, "1", [0], 0, 0),
        ("silent,not begun", {}, "01", [0, 0], 0, 0),
        ("silent,not begun", {"preemption": 0}, "1", [0], 0, 0),
        ("done,error", {}, "", [], 0, 0),
        # the code of a failure goes before that of a stop, unless the job goes on for that
        ("not begun,not begun", {}, "01", [137, 0], 0, 137),
        ("not begun,not begun", {}, "01", [0, 8], 0, 8),
        ("not begun,not begun", {}, "01", [75, 0], 1, 75),
        ("not begun,not begun", {}, "01", [75, 8], 1, 75),
        ("not begun,not begun", {"preemption": 0}, "01", [75, 8], 0, 8),
        ("not begun,not begun", {"preemption": 0}, "01", [75, 0], 0, 75),
        ("not begun,not begun", {}, "01", ["cancelled", 0], 0, 75),
        ("not begun,not begun", {}, "01", ["cancelled", 75], 1, 75),
    ],
)
def test_who_is_trained_and_for_whom_the_job_goes_on(
    make_run: MakeRun,
    slurm: Replayed,
    monkeypatch: pytest.MonkeyPatch,
    left: str,
    retries: dict[str, int],
    trained: str,
    codes: list[Any],
    requeues: int,
    left_with: int,
) -> None:
    run = make_run()
    site = {"name": "s", "scheduler": "slurm", "retries": retries}
    write_atomic(run.toml, to_toml(run.read_config().model_copy(update={"site": site})))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0" if left == "not begun,not begun" else "1")
    for key, word in zip("01", left.split(","), strict=True):
        leave(run.fold(key), word)
    record(run, "intent", name="ctf0a1", folds=["0", "1"], exclude=[])
    record(run, "submitted", name="ctf0a1", job_id="7")

    def run_children(_run: Run, _config: object, folds: list[str], job: JobContext, *_: object) -> dict[str, int]:
        assert (job.job_id, job.job_name, job.node, job.scheduler) == ("7", "ctf0a1", "n1", "slurm")
        for key, code in zip(folds, codes, strict=True):
            if code == "cancelled":
                write_atomic(run.fold(key).cancelled, "{}")
        return {key: 75 if code == "cancelled" else code for key, code in zip(folds, codes, strict=True)}

    monkeypatch.setattr(launch, "_run_children", run_children)
    assert launch._run_job(run, run.read_config(), site_of(run), ["0", "1"]) == left_with
    assert len(slurm.asked("scontrol requeue 7")) == requeues
    if left.startswith("silent"):
        end = read_end(run.fold("0").attempt(1))
        assert end is not None
        assert (end.cause, end.handed_over) == ("preemption", "0" in trained)


@pytest.mark.parametrize(
    ("device", "num_ranks", "environment", "memory_gb", "gpus"),
    [
        ("cpu", 1, {}, 2.0, []),
        ("cpu", 1, {"CUDA_VISIBLE_DEVICES": "0,1"}, 2.0, []),
        ("cuda", 1, {"CUDA_VISIBLE_DEVICES": "0,1"}, 2.0, ["0", "1"]),
        ("cuda", 2, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 2.0, ["0,1", "2,3"]),
        ("cuda", 1, {}, 2.0, []),
        ("cpu", 1, {"SLURM_MEM_PER_NODE": "3072"}, 3.0, []),  # a larger job that has taken another one's place
        ("cpu", 1, {"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "4"}, 4.0, []),
    ],
)
def test_what_the_folds_of_a_job_get(
    make_run: MakeRun,
    slurm: Replayed,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    num_ranks: int,
    environment: dict[str, str],
    memory_gb: float,
    gpus: list[str],
) -> None:
    run = make_run()
    config = run.read_config()
    compute = config.compute.model_copy(update={"device": device, "num_ranks": num_ranks})
    config = config.model_copy(
        update={"site": {"name": "s", "scheduler": "slurm", "memory_gb": 2.0}, "compute": compute}
    )
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    got: list[Any] = []

    def run_children(*given: Any) -> dict[str, int]:
        got.append(given)
        return {}

    monkeypatch.setattr(launch, "_run_children", run_children)
    write_atomic(run.toml, to_toml(config))
    launch._run_job(run, config, site_of(run), ["0", "1"])
    ((_, _, _, job, shares, _),) = got
    assert job.memory_gb == memory_gb
    assert shares == [(share, []) for share in gpus]


@pytest.mark.parametrize(
    ("code", "folds", "is_over"),
    [
        (0, "done,done", True),
        (0, "done,cancelled", True),
        (0, "done,", False),  # srun says 0 where its slurmstepd was killed
        (0, ",done", False),
        (137, "done,done", False),  # the code may be that of another thing to settle
        (75, ",", False),
    ],
)
def test_a_teardown_is_started_unless_every_fold_is_over(
    make_run: MakeRun, code: int, folds: str, is_over: bool
) -> None:
    run = make_run("it's a run")
    for key, word in zip("01", folds.split(","), strict=True):
        leave(run.fold(key), word or "not begun")
    (line,) = fold_request(run, run.read_config(), ["0", "1"]).teardown
    said = subprocess.run(
        ["bash", "-c", f"python=(echo)\ncode={code}\n{line}"], capture_output=True, text=True, check=True
    )
    told = f"-m contrails.cluster.job.teardown {run.path} 0,1 {code}\n"
    assert said.stdout == ("" if is_over else told)
