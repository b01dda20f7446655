"""Submission to a real Slurm cluster: killed at any point it neither duplicates nor forgets a job."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contrails.aggregate.ensemble import read_ensemble
from contrails.cluster.queue.journal import submissions
from contrails.files import read_hint
from contrails.runs.folder import Run

from local_site import eventually
from slurm_cluster import SlurmCluster
from slurm_site import SlurmSite, fresh_path

pytestmark = pytest.mark.slow

SHORT = ("-o", "train.epochs=1")
LONG = ("-o", "train.epochs=3000")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, cluster: SlurmCluster) -> Iterator[SlurmSite]:
    site = SlurmSite(tmp_path_factory.mktemp("submission"), tiny_data, cluster)
    yield site
    site.end_everything()


@pytest.fixture(autouse=True)
def _nothing_left(site: SlurmSite) -> Iterator[None]:
    """A test that fails must not leave its jobs to the next one."""
    yield
    site.end_everything()
    eventually(lambda: not site.squeue())


def submit_with(site: SlurmSite, name: str, tmp_path: Path, sbatch: str) -> subprocess.CompletedProcess[str]:
    """Submit fold 0 with another sbatch in front of the real one."""
    command = site._command("submit", "tiny.toml", "--name", name, "--fold", "0", "--site", "test", *SHORT)
    command["env"] |= {"PATH": fresh_path(tmp_path / "bin", sbatch=sbatch)}
    return subprocess.run(**command, check=False)


def names_of_all_jobs(site: SlurmSite, name: str) -> list[str]:
    """Return the names of the run's jobs that Slurm has ever seen."""
    listed = site.cluster.command("sacct", "-n", "-X", "-P", "-o", "JobName").split()
    mine = {job.name for job in submissions(Run(site.root / "runs" / name))}
    return [job for job in listed if job in mine]


@pytest.mark.parametrize(
    ("what", "sbatch"),
    [("before", "kill -9 $PPID"), ("after", '/usr/bin/sbatch "$@" >/dev/null; kill -9 $PPID')],
    ids=["before", "after"],
)
def test_killed_around_the_scheduler(site: SlurmSite, tmp_path: Path, what: str, sbatch: str) -> None:
    killed = submit_with(site, f"killed-{what}", tmp_path, sbatch)
    assert killed.returncode == -signal.SIGKILL
    site.submit(f"killed-{what}", *SHORT)
    site.wait_for_done(f"killed-{what}")
    eventually(lambda: len(names_of_all_jobs(site, f"killed-{what}")) == 1, 20)
    assert len(site.fold("0", f"killed-{what}").attempts()) == 1


def test_killed_before_the_pickle_is_renamed(site: SlurmSite) -> None:
    command = site._command("submit", "tiny.toml", "--name", "unnamed", "--fold", "0", "--site", "test", *SHORT)
    code = (
        "import os, sys\nfrom contrails.cluster.schedulers import slurm\nfrom contrails.cli.main import main\n"
        "slurm.complete = lambda *arguments: os._exit(9)\nmain()\n"
    )
    command["args"] = [sys.executable, "-c", code, *command["args"][3:]]
    assert subprocess.run(**command, check=False).returncode == 9
    assert not list((site.root / "runs/unnamed/submitit").glob("*/*_submitted.pkl"))
    site.submit("unnamed", *SHORT)
    site.wait_for_done("unnamed")
    eventually(lambda: len(names_of_all_jobs(site, "unnamed")) == 1, 20)


def test_an_answer_that_is_lost_is_found_by_name(site: SlurmSite, tmp_path: Path) -> None:
    lost = '/usr/bin/sbatch "$@" >/dev/null; echo "sbatch: error: Socket timed out" >&2; exit 1'
    done = submit_with(site, "lost", tmp_path, lost)
    assert done.returncode == 0, done.stderr
    site.wait_for_done("lost")
    eventually(lambda: len(names_of_all_jobs(site, "lost")) == 1, 20)


def test_a_refusal_is_said_and_can_be_mended(site: SlurmSite) -> None:
    site.profile("wrong", partition="nowhere")
    refused = site.run("submit", "tiny.toml", "--name", "refused", "--fold", "0", "--site", "wrong", *SHORT)
    assert refused.returncode == 6
    assert "invalid partition specified: nowhere" in refused.stderr
    assert "contrails doctor --site wrong" in refused.stderr
    assert site.states("refused")["0"]["state"] == "not submitted"
    doctor = site.run("doctor", "--site", "wrong")
    assert doctor.returncode == 9
    assert "FAIL partition and limits" in doctor.stdout


@pytest.mark.parametrize(
    ("name", "keys"), [("memory", {"memory_gb": 100}), ("gpu", {"num_gpus": 1, "gpu_type": "h100", "device": "cpu"})]
)
def test_what_slurm_refuses_and_keeps_as_failed_is_not_submitted(
    site: SlurmSite, tmp_path: Path, name: str, keys: dict[str, object]
) -> None:
    site.profile("vast", **keys)
    arguments = ("submit", "tiny.toml", "--name", name, "--fold", "0", "--site", "vast", *SHORT)
    refused = site.run(*arguments)
    assert refused.returncode == 6
    assert "sbatch: error: Batch job submission failed: Requested node configuration is not available" in refused.stderr
    assert "contrails doctor --site vast" in refused.stderr
    assert site.states(name)["0"]["state"] == "not submitted"
    killed = site._command(*arguments)
    killed["env"] |= {"PATH": fresh_path(tmp_path / "bin", sbatch='/usr/bin/sbatch "$@"; kill -9 $PPID')}
    assert subprocess.run(**killed, check=False).returncode == -signal.SIGKILL
    assert site.run(*arguments).returncode == 6
    jobs = submissions(Run(site.root / "runs" / name))
    assert [(job.job_id, job.void) for job in jobs] == [(None, True)] * 3
    assert not list(jobs[0].folder(Run(site.root / "runs" / name)).parent.rglob("*.pkl"))
    site.profile("vast")
    done = site.run("resume", name, "--site", "vast")
    assert done.returncode == 0, done.stderr
    site.wait_for_done(name)


@pytest.mark.parametrize(
    ("name", "keys", "why"),
    [
        (
            "long",
            {"walltime_min": 2000},
            "PENDING (PartitionTimeLimit): walltime_min is more than the partition allows",
        ),
        ("broad", {"num_cpus": 20, "memory_gb": 1}, "PENDING (PartitionConfig): the partition has no node"),
    ],
)
def test_a_job_that_can_never_start_says_what_to_type(
    site: SlurmSite, name: str, keys: dict[str, object], why: str
) -> None:
    site.profile("never", **keys)
    site.submit(name, *SHORT, site="never")
    eventually(lambda: why in (site.states(name)["0"]["reason"] or ""))
    reason = site.states(name)["0"]["reason"]
    assert site.run("doctor", "--site", "never").returncode == 9
    site.profile("never")
    typed = re.findall("`contrails ([^`]*)`", reason)
    assert typed == [f"cancel {name}", f"resume {name} --site never"]
    for words in typed:
        assert site.run(*words.split()).returncode == 0
    site.wait_for_done(name)


def test_five_folds_at_once_from_frozen_code(site: SlurmSite, tiny_data: Path) -> None:
    made = site.run("split", str(tiny_data / "train.h5"), "--folds", "5", "-o", "five.csv")
    assert made.returncode == 0, made.stderr
    site.cluster.command("scontrol", "update", "partitionname=low", "state=down")  # jobs wait
    arguments = ("submit", "tiny.toml", "--name", "five", "--folds", "5", "-o", "data.filelist=five.csv", *SHORT)
    done = site.run(*arguments, "--site", "test", "--then", "aggregate", "--json")
    assert done.returncode == 0, done.stderr
    assert {state["state"] for state in site.states("five").values()} == {"waiting"}
    again = site.run(*arguments, "--site", "test", "--json")
    assert json.loads(again.stdout)["five"]["folds"] == dict.fromkeys("01234", "waiting")
    site.move_launcher()  # in the clone: the run has code of its own
    site.cluster.command("scontrol", "update", "partitionname=low", "state=up")
    site.wait_for_snapshot(site.fold("0", "five"))
    site.cluster.command("scontrol", "requeue", site.job("five"))
    site.wait_for_done("five", *"01234")
    eventually((site.root / "runs/five/aggregate/default/ensemble.json").exists)
    eventually(lambda: len(names_of_all_jobs(site, "five")) == 6, 20)
    assert site.run(*arguments, "--site", "test", "--json").returncode == 0
    assert len(names_of_all_jobs(site, "five")) == 6


def test_what_was_to_follow_and_did_not_is_said(site: SlurmSite, tmp_path: Path, tiny_data: Path) -> None:
    refusing = fresh_path(tmp_path / "bin", sbatch='echo "sbatch: error: nodes do not submit" >&2; exit 1')
    (tmp_path / "environment.sh").write_text(f"export PATH={refusing}\n")
    site.profile("mute", environment=str(tmp_path / "environment.sh"))
    site.submit("mute", *SHORT, "--then", "aggregate", site="mute")
    vanishing = Path(shutil.copy(tiny_data / "test.h5", tmp_path))
    site.submit("failing", *SHORT, "--then", f"aggregate --data {vanishing}")
    vanishing.unlink()
    site.wait_for_done("mute")
    site.wait_for_done("failing")
    eventually(lambda: "last fold could not be started (" in site.run("status", "mute").stdout)
    site.profile("mute")
    assert site.run("resume", "mute", "--site", "mute").returncode == 0
    eventually((site.root / "runs/mute/aggregate/default/ensemble.json").exists)
    eventually(lambda: "last fold failed with exit code 4" in site.run("status", "failing").stdout)
    site.submit("failing", *SHORT, "--then", "aggregate")
    eventually((site.root / "runs/failing/aggregate/default/ensemble.json").exists)
    eventually(lambda: read_hint(Run(site.root / "runs/failing").then_claim).get("code") == 0)
    assert "the command after the last fold" not in site.run("status", "failing").stdout
    site.submit("failing", *SHORT, "--then", "aggregate")  # it has followed
    assert [job.name[-2:] for job in submissions(Run(site.root / "runs/failing"))] == ["a1", "a1", "a2"]


def test_a_run_after_another_and_the_end_of_both(site: SlurmSite) -> None:
    site.submit("first", *LONG)
    site.submit("second", "--after", "first", *SHORT)
    eventually(lambda: site.states("second")["0"]["reason"] == "PENDING (Dependency)")
    site.wait_for_snapshot(site.fold("0", "first"))
    shown = site.run("logs", "first", "--fold", "0", "-n", "3")
    assert str(site.fold("0", "first").attempt(1).stderr) in shown.stdout or shown.stdout == ""
    ended = site.run("cancel", "first", "--json")
    assert json.loads(ended.stdout) == {"0": "cancelled"}
    eventually(lambda: site.states("first")["0"]["state"] == "cancelled")
    eventually(lambda: not site.squeue("--states=R,CG"))
    step = site.states("first")["0"]["step"]
    assert step == site.fold("0", "first").all_snapshots()[0].step
    assert site.run("cancel", "second").returncode == 0
    eventually(lambda: not site.squeue())
    assert site.states("second")["0"]["state"] == "cancelled"


def test_one_fold_of_a_job_is_cancelled_beside_another(site: SlurmSite) -> None:
    site.submit("pair", "--folds-per-job", "2", *LONG, fold="0,1")
    folds = [site.fold(key, "pair") for key in "01"]
    site.wait_for_snapshot(*folds)
    assert site.run("cancel", "pair", "--fold", "1").returncode == 0
    eventually(lambda: site.states("pair")["1"]["state"] == "cancelled")
    assert site.states("pair")["0"]["state"] == "running"
    os.kill(site.pid("pair"), signal.SIGUSR2)  # the other stops alone, so the job goes back for it, and only for it
    eventually(lambda: len(folds[0].attempts()) == 2)
    site.wait_for("pair", "0", "running")
    assert len(folds[1].attempts()) == 1
    assert site.run("cancel", "pair").returncode == 0


def test_preparation_by_jobs_makes_the_same_bytes(site: SlurmSite, tiny_data: Path) -> None:
    arguments = ("prepare", str(tiny_data / "raw"), "joined.h5", "--site", "test", "--jobs", "2")
    site.cluster.command("scontrol", "update", "partitionname=low", "state=down")  # jobs wait
    done = site.run(*arguments)
    assert done.returncode == 0, done.stderr
    (site.package / "new.py").touch()
    refused = site.run(*arguments)
    assert (refused.returncode, "to run this version of the code, found another version" in refused.stderr) == (6, True)
    (site.package / "new.py").unlink()
    site.cluster.command("scontrol", "update", "partitionname=low", "state=up")
    eventually((site.root / "joined.h5").exists)
    assert (site.root / "joined.h5").read_bytes() == (tiny_data / "train.h5").read_bytes()
    assert site.run(*arguments).stdout.splitlines() == [
        f"{name}: complete" for name in ("joined-1of2.h5", "joined-2of2.h5", "joined.h5")
    ]


def test_aggregation_by_jobs_is_that_of_one_call(site: SlurmSite) -> None:
    site.submit("shared", *SHORT, fold="0,1,2")
    site.wait_for_done("shared", "0", "1", "2")
    refused = site.run("aggregate", "shared", "--site", "test", "--jobs", "2")
    assert (refused.returncode, "--weights auto compares all folds" in refused.stderr) == (3, True)
    arguments = ("aggregate", "shared", "--weights", "best", "--device", "cpu")
    done = site.run(*arguments, "--site", "test", "--jobs", "2")
    assert done.returncode == 0, done.stderr
    assert [line.partition(": job ")[0] for line in done.stdout.splitlines()] == [
        "out of fold 1/2",
        "out of fold 2/2",
        "ensemble",
    ]
    made = Run(site.root / "runs" / "shared").aggregate("default")
    eventually((made / "ensemble.json").exists, 240)
    assert len(list((made / "out_of_fold").glob("*.h5"))) == 3
    alone = site.run(*arguments, "--name", "alone", "--json")
    assert alone.returncode == 0, alone.stderr
    assert read_ensemble(made).scores == json.loads(alone.stdout)["scores"]


def test_a_node_is_checked_by_a_job(site: SlurmSite) -> None:
    done = site.run("doctor", "--site", "test", "--job", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {check["name"]: check["holds"] for check in json.loads(done.stdout)}
    assert found["job: import torch"]
    assert found["job: file locks"]
    assert found["partition and limits"]


def test_a_controller_that_is_gone_and_comes_back(site: SlurmSite) -> None:
    site.submit("stale", *LONG)
    site.wait_for("stale", "0", "running")
    site.cluster.kill_controller()
    state = site.states("stale")["0"]
    assert (state["state"], state["stale"]) == ("running", True)
    refused = site.run("submit", "tiny.toml", "--name", "stale", "--fold", "0", "--site", "test", *LONG)
    assert refused.returncode == 6
    fold = site.fold("0", "stale")
    os.kill(site.pid("stale"), signal.SIGUSR2)  # a hand-over waits for the controller
    eventually(lambda: read_hint(fold.attempt(1).state).get("status") == "stopped")
    assert site.states("stale")["0"]["stale"]
    time.sleep(12)  # scontrol gives up after 9 s
    site.cluster.restart_controller()
    eventually(lambda: len(fold.attempts()) == 2)
    site.wait_for("stale", "0", "running")
    assert not site.states("stale")["0"]["stale"]
    assert site.run("cancel", "stale").returncode == 0
