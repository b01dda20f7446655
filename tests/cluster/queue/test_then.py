"""What follows the last fold: started once, whoever dies between its claim and its end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeRun, freeze

from contrails.cli.main import cli
from contrails.cluster.queue import then
from contrails.cluster.queue.journal import record, submissions
from contrails.cluster.queue.names import job_name
from contrails.cluster.queue.then import ask_for, following, forget_failure, left_to_do, start_if_due
from contrails.cluster.schedulers.sites import site_of
from contrails.cluster.status.overview import ask_schedulers
from contrails.errors import ClusterError
from contrails.files import read_hint, read_json_lines, to_json, write_atomic
from contrails.processes import process_of
from contrails.recipe.recipe import to_toml
from contrails.runs.folder import Run

from fake_pbs import FakePbs
from local_site import eventually
from pbs_runs import PbsRuns
from replayed import Replayed

_START = """
import sys
from pathlib import Path
from contrails.cluster.queue import then
from contrails.cluster.schedulers.sites import site_of
from contrails.runs.folder import Run
run = Run(Path(sys.argv[1]))
then.start_if_due(run, run.read_config(), site_of(run))
"""


@pytest.fixture
def run(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A finished run that is to be followed by a remark about it."""
    run = make_run("first")
    monkeypatch.setenv("CONTRAILS_RUNS", str(run.path.parent))
    freeze(run)
    finish(run)
    return run


@pytest.fixture
def queued(run: Run, fake: FakePbs, registered: None) -> Run:
    """The same on PBS."""
    site = {"name": "test", "scheduler": "pbs", "memory_gb": 1, "device": "cpu", "num_threads": 1}
    write_atomic(run.toml, to_toml(run.read_config().model_copy(update={"site": site})))
    return run


def finish(run: Run) -> None:
    write_atomic(run.fold("0").done, to_json({"attempt": 1, "step": 12, "epoch": 3, "best_dice": 0.5}))
    ask_for(run, ["note", str(run.path), "it came"], ["0"])


def start(run: Run) -> None:
    start_if_due(run, run.read_config(), site_of(run))


def times(run: Run) -> int:
    """Return how often the command has run."""
    return len(read_json_lines(run.notes))


def code(run: Run) -> Any:
    return read_hint(run.then_claim).get("code")


def dying_in(function: str) -> str:
    """Return code that starts what follows and is killed in a function of `contrails.cluster.queue.then`."""
    return _START.replace("run = ", f"import os\nthen.{function} = lambda *_: os.kill(os.getpid(), 9)\nrun = ")


def ended() -> dict[str, Any]:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process_of(process.pid).to_json()


def test_it_follows_the_last_fold_and_once(run: Run) -> None:
    ask_for(run, ["note", str(run.path), "it came"], ["0", "1"])
    start(run)
    assert times(run) == 0
    write_atomic(run.fold("1").done, run.fold("0").done.read_bytes())
    assert "the command after the last fold has not been started" in str(left_to_do(run, None))
    start(run)
    start(run)
    ask_for(run, ["note", str(run.path), "it came"], ["0", "1"])
    start(run)
    assert (times(run), code(run), left_to_do(run, None)) == (1, 0, None)


def test_status_says_where_it_stands_and_writes_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    ask_for(run, ["note", "first", "it came"], ["0", "1"])
    assert "then `contrails note first 'it came'`: waiting, for 1 of 2 folds\n" in told(run, capsys)
    write_atomic(run.fold("1").done, run.fold("0").done.read_bytes())
    assert "'it came'`: not started\nevery fold is finished; the command after the last fold has" in told(run, capsys)
    write_atomic(run.then_claim, to_json(process_of(os.getpid()).to_json() | {"time": time.time()}))
    assert "'it came'`: running\n" in told(run, capsys)
    write_atomic(run.then_claim, to_json(ended()))
    assert "'it came'`: lost\nevery fold is finished; the command after the last fold was" in told(run, capsys)
    write_atomic(run.then_claim, to_json({"code": 5}))
    assert "'it came'`: failed\nevery fold is finished; the command after the last fold failed" in told(run, capsys)
    write_atomic(run.then_claim, to_json({"code": 0}))
    assert told(run, capsys).endswith("'it came'`: done\n")
    ask_for(run, [], [])
    assert "then `" not in told(run, capsys)


def told(run: Run, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what `contrails status` says as text, and check that JSON agrees and that nothing was written."""
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    capsys.readouterr()
    cli(["status", "first", "--json"], standalone_mode=False)
    rows = json.loads(capsys.readouterr().out)
    assert [row["fold"] for row in rows["first"]] == [fold.key for fold in run.folds()]
    cli(["status", "first"], standalone_mode=False)
    text = capsys.readouterr().out
    if "--then" in rows:
        row = rows["--then"]["first"]
        assert f"then `{row['command']}`: {row['state']}" in text
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    return text


def test_a_job_of_the_run_that_is_still_there_starts_it(run: Run) -> None:
    launcher = subprocess.Popen(["sleep", "600"])
    record(run, "intent", name="ct01", folds=["0"], exclude=[])
    record(run, "submitted", name="ct01", job_id="local-1", process=process_of(launcher.pid).to_json())
    assert left_to_do(run, None) is None
    launcher.kill()
    launcher.wait()
    assert "the command after the last fold has not been started" in str(left_to_do(run, None))


def test_several_at_once_start_it_once(run: Run) -> None:
    started = [subprocess.Popen([sys.executable, "-c", _START, str(run.path)]) for _ in range(4)]
    assert [process.wait(120) for process in started] == [0, 0, 0, 0]
    assert times(run) == 1


def test_a_claimant_that_died_leaves_it_to_resume_and_to_submit(run: Run, tmp_path: Path) -> None:
    write_atomic(run.then_claim, to_json(ended()))
    assert "was interrupted; try it again with `contrails resume first`" in str(left_to_do(run, None))
    cli(["resume", "first"], standalone_mode=False)
    assert times(run) == 1
    write_atomic(run.then_claim, to_json(ended()))
    (tmp_path / "first.toml").write_text(to_toml(run.read_config().recipe))
    cli(["submit", str(tmp_path / "first.toml"), "--fold", "0"], standalone_mode=False)
    assert times(run) == 2


def test_a_claimant_that_was_killed_with_its_command_leaves_it(run: Run) -> None:
    assert subprocess.run([sys.executable, "-c", dying_in("_run_here"), str(run.path)], check=False).returncode < 0
    assert read_hint(run.then_claim)["pid"]
    start(run)
    assert (times(run), code(run)) == (1, 0)


@pytest.mark.parametrize(
    ("owner", "is_free"),
    [({}, False), ({"boot_id": "that of yesterday"}, True), ({"host": "elsewhere"}, False)],
    ids=["alive", "before the last boot", "elsewhere"],
)
def test_a_claim_is_judged_by_its_process(run: Run, owner: dict[str, Any], is_free: bool) -> None:
    write_atomic(run.then_claim, to_json(process_of(os.getpid()).to_json() | {"time": time.time()} | owner))
    start(run)
    assert times(run) == is_free


def test_a_claim_of_another_machine_is_free_when_it_is_silent(run: Run) -> None:
    long_ago = time.time() - 200
    write_atomic(run.then_claim, to_json(process_of(os.getpid()).to_json() | {"host": "elsewhere", "time": long_ago}))
    os.utime(run.then_claim, (long_ago, long_ago))
    start(run)
    assert times(run) == 1


def test_a_failure_is_said_and_tried_again_by_the_user_alone(run: Run) -> None:
    ask_for(run, ["note", "another run", "it came"], ["0"])
    start(run)
    assert "failed with exit code 5" in str(left_to_do(run, None))
    claim = run.then_claim.read_bytes()
    start(run)
    assert run.then_claim.read_bytes() == claim
    forget_failure(run)
    start(run)
    assert code(run) == 5


@pytest.mark.parametrize("when", ["before the claim", "before the journal", "before qsub", "after qsub"])
def test_a_claimant_on_a_cluster_may_die_anywhere(
    queued: Run, fake: FakePbs, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    qsub = tmp_path / "bin" / "qsub"
    asked = f'"{fake.bin}/qsub" "$@" >/dev/null; ' * (when == "after qsub")
    qsub.write_text(f"#!/bin/bash\n{asked}kill -9 $PPID\n")
    qsub.chmod(0o755)
    dies = {"before the claim": "_claim", "before the journal": "submit_job"}
    code_of = dying_in(dies[when]) if when in dies else _START
    environment = dict(os.environ) | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    killed = subprocess.run([sys.executable, "-c", code_of, str(queued.path)], env=environment, check=False)
    assert killed.returncode < 0
    start(queued)
    start(queued)
    eventually(lambda: code(queued) == 0)
    start(queued)
    assert times(queued) == 1
    assert [job.name[-4:] for job in submissions(queued) if job.job_id is not None] in (["g0a1"], ["g0a2"])


def test_a_job_that_vanished_is_said_and_submitted_again(
    queued: Run, fake: FakePbs, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.configure(slots=0)
    start(queued)
    (job,) = submissions(queued)
    assert left_to_do(queued, ask_schedulers([queued])[queued]) is None
    assert f": queued, job {job.job_id}, " in told(queued, capsys)
    subprocess.run(["qdel", "-W", "force", str(job.job_id)], check=False)
    eventually(lambda: "was lost with its job" in str(left_to_do(queued, ask_schedulers([queued])[queued])))
    fake.configure(slots=4)
    cli(["resume", "first"], standalone_mode=False)
    eventually(lambda: code(queued) == 0)
    assert times(queued) == 1
    newest = submissions(queued)[-1]
    chain = newest.folder(queued) / f"{newest.job_id}_chain.jsonl"
    eventually(lambda: '"over"' in chain.read_text())  # the job's last word comes after that of the command
    assert left_to_do(queued, ask_schedulers([queued])[queued]) is None
    assert told(queued, capsys).endswith(": done\n")


def test_the_end_of_an_older_job_says_nothing_of_the_newer(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(run.then_claim, to_json({"job_name": "ct000000g0a2"}))
    monkeypatch.setattr(sys, "argv", ["then", str(run.path), "ct000000g0a1", "1"])
    then.main()
    assert code(run) is None
    monkeypatch.setattr(sys, "argv", ["then", str(run.path), "ct000000g0a2", "1"])
    then.main()
    assert code(run) == 1


def test_a_launcher_that_is_killed_at_its_end_leaves_it_to_the_end_of_its_job(
    tmp_path: Path, tiny_data: Path, fake: FakePbs
) -> None:
    site = PbsRuns(tmp_path, tiny_data, fake)
    launcher = site.package / "cluster" / "job" / "launch.py"
    launcher.write_text(
        launcher.read_text().replace("tell_failure(start_if_due, run, config, site)", "os.kill(os.getpid(), 9)")
    )
    site.submit("first", "-o", "train.epochs=1", "--then", "aggregate")
    run = Run(tmp_path / "runs" / "first")
    ask_for(run, ["note", str(run.path), "it came"], ["0"])
    eventually(lambda: code(run) == 0)
    assert times(run) == 1
    site.end_everything()


def finished_on_slurm(make_run: MakeRun) -> Run:
    run = make_run()
    write_atomic(run.toml, to_toml(run.read_config().model_copy(update={"site": {"name": "s", "scheduler": "slurm"}})))
    finish(run)
    return run


@pytest.mark.parametrize(
    ("claim", "squeue", "sacct", "state", "is_started"),
    [
        (None, "", "", "not started", True),
        (None, "7|ctf0a1|RUNNING|None|n1", "", "waiting", True),  # the last job of the folds starts it
        (None, "7|ctf0a1|COMPLETED|None|n1", "", "not started", True),
        ("", "9|NAME|PENDING|Priority|", "", "queued", False),
        ("", "9|NAME|RUNNING|None|n1", "", "running", False),
        ("", "9|NAME|SUSPENDED|None|n1", "", "queued", False),
        ("", "9|NAME|COMPLETING|None|n1", "", "running", False),
        ("", "9|NAME|FAILED|NonZeroExitCode|n1", "", "lost", True),
        ("", "", "9|NAME|NODE_FAIL|0:0|n1", "lost", True),
        ("", "", "", "lost", True),
        ("", "9|another|RUNNING|None|n1", "", "lost", True),  # Slurm has given the number again
        ("code 0", "", "9|NAME|COMPLETED|0:0|n1", "done", False),
        ("code 0", "9|NAME|RUNNING|None|n1", "", "done", False),  # its batch script is about to end
        ("code 5", "", "9|NAME|FAILED|5:0|n1", "failed", False),
        ("code 5", "9|NAME|PENDING|BeginTime|", "", "queued", False),  # Slurm has started it again
        ("error", "", "", "failed", True),
        ("not asked", "", "", "not started", True),  # killed between the claim and the journal
    ],
)
def test_who_starts_it_on_slurm(
    make_run: MakeRun, slurm: Replayed, claim: str | None, squeue: str, sacct: str, state: str, is_started: bool
) -> None:
    run = finished_on_slurm(make_run)
    name = job_name(run.path, "g0", [])
    record(run, "intent", name="ctf0a1", folds=["0"], exclude=[])
    record(run, "submitted", name="ctf0a1", job_id="7")
    more: dict[str, Any] = {"code": int(claim[-1])} if claim in ("code 0", "code 5") else {}
    if claim is not None:
        write_atomic(run.then_claim, to_json({"job_name": name} | ({"error": "no"} if claim == "error" else more)))
    if claim not in (None, "error", "not asked"):
        record(run, "intent", name=name, folds=[], exclude=[])
        record(run, "submitted", name=name, job_id="9")
    slurm.say({"squeue --me": squeue.replace("NAME", name), "sacct": sacct.replace("NAME", name)})
    row = following(run, ask_schedulers([run])[run])
    assert row is not None
    assert row.state == state
    assert row.job_id == ("9" if claim in ("", "code 5") else None)
    start(run)
    assert len(slurm.asked("sbatch")) == is_started
    assert (submissions(run)[-1].job_id == "20") == is_started


def test_without_an_answer_of_slurm_it_is_not_started_again(make_run: MakeRun, slurm: Replayed) -> None:
    run = finished_on_slurm(make_run)
    start(run)
    slurm.say({"squeue": "slurm_load_jobs error: Unable to contact slurm controller"}, code=1)
    row = following(run, None)
    assert row is not None
    assert (row.state, row.stale, row.job_id) == ("queued", True, "20")
    with pytest.raises(ClusterError, match="Unable to contact"):
        start(run)
    assert len(slurm.asked("sbatch")) == 1
