"""Folds that fail on a real Slurm cluster, by cause: what is tried again ends in the bits of an undisturbed fold."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from contrails.cluster.journal import submissions

from local_site import eventually
from slurm_cluster import SlurmCluster
from slurm_site import SlurmSite, weights

pytestmark = pytest.mark.slow

EPOCHS = ("-o", "train.epochs=80")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, cluster: SlurmCluster) -> Iterator[SlurmSite]:
    site = SlurmSite(tmp_path_factory.mktemp("failures"), tiny_data, cluster)
    yield site
    site.end_everything()


@pytest.fixture(scope="module")
def undisturbed(site: SlurmSite) -> dict[str, str]:
    site.submit("undisturbed", *EPOCHS)
    site.wait_for_done("undisturbed")
    return weights(site.fold("0", "undisturbed"))


def test_a_killed_training_is_tried_again_with_more_memory(site: SlurmSite, undisturbed: dict[str, str]) -> None:
    site.submit("killed", *EPOCHS)
    fold = site.fold("0", "killed")
    site.wait_for_snapshot(fold)
    os.kill(site.pid("killed"), signal.SIGKILL)
    site.wait_for_done("killed")
    assert site.ends("killed") == ["memory", ""]
    assert weights(fold) == undisturbed
    first, second = submissions(fold.run)
    assert (first.memory_gb, second.memory_gb) == (None, 3.0)
    assert second.name == f"{first.name[:-1]}2"


def test_a_killed_launcher_is_seen_by_the_teardown(site: SlurmSite, undisturbed: dict[str, str]) -> None:
    site.submit("orphan", *EPOCHS)
    site.wait_for_snapshot(site.fold("0", "orphan"))
    os.kill(psutil.Process(site.pid("orphan")).ppid(), signal.SIGKILL)
    site.wait_for_done("orphan")
    assert site.ends("orphan")[0] == "memory"
    assert weights(site.fold("0", "orphan")) == undisturbed


def test_a_job_over_its_memory_gives_up_when_its_budget_is_used(site: SlurmSite) -> None:
    site.profile("small", memory_gb=0.1, retries={"memory": 1})
    site.submit("small", *EPOCHS, site="small")
    state = site.wait_for("small", "0", "failed", "done")
    assert (state["state"], state["cause"]) == ("failed", "memory")
    assert "raise memory_gb" in state["reason"]
    asked = [job.memory_gb for job in submissions(site.fold("0", "small").run)]
    assert asked[:2] == [None, pytest.approx(0.15)]
    # one more where a job was killed before its attempt: such jobs have a budget of their own
    assert len(asked) <= 3


def test_jobs_that_are_killed_before_they_begin_have_a_budget_together(site: SlurmSite) -> None:
    script = site.root / "kill.sh"
    script.write_text("srun() { return 137; }\n")
    site.profile("stillborn", environment=str(script), retries={"memory": 2})
    site.submit("stillborn", *EPOCHS, site="stillborn")
    eventually(lambda: len(submissions(site.fold("0", "stillborn").run)) == 3)
    state = site.wait_for("stillborn", "0", "failed")
    assert state["cause"] == "memory"
    assert f"its job {state['job_id']} ended before it began" in state["reason"]
    assert [job.memory_gb for job in submissions(site.fold("0", "stillborn").run)] == [None, 3.0, 4.5]


def test_jobs_that_are_stopped_before_they_begin_have_a_budget(site: SlurmSite) -> None:
    task = site.package / "cluster" / "task.py"
    original = task.read_text()
    # the signal of a preemption comes while torch is imported, each time
    task.write_text("import os, signal, time\nos.kill(os.getppid(), signal.SIGUSR2)\ntime.sleep(60)\n")
    site.profile("hasty", retries={"preemption": 2})
    site.submit("hasty", *EPOCHS, site="hasty")
    task.write_text(original)
    state = site.wait_for("hasty", "0", "failed")
    assert state["cause"] == "preemption"
    assert "was stopped (preemption) before it began an attempt" in state["reason"]
    assert state["attempt"] == 0
    (job,) = submissions(site.fold("0", "hasty").run)
    eventually(lambda: not site.squeue("--states=PD,R"))
    listed = site.cluster.command("scontrol", "--oneliner", "show", "job", str(job.job_id)).split()
    assert "Restarts=2" in listed


def test_a_node_without_the_gpu_is_avoided(site: SlurmSite) -> None:
    site.profile("gpu", device="cuda", num_gpus=1, retries={"node": 1})
    site.submit("gpu", *EPOCHS, site="gpu")
    state = site.wait_for("gpu", "0", "failed")
    eventually(lambda: len(submissions(site.fold("0", "gpu").run)) == 2)
    state = site.wait_for("gpu", "0", "failed")
    assert state["cause"] == "node"
    assert "torch finds none on this node" in state["reason"]
    first, second = submissions(site.fold("0", "gpu").run)
    assert first.exclude == ()
    assert second.exclude == ("n1",)


def test_a_traceback_is_not_tried_again(site: SlurmSite, tiny_data: Path) -> None:
    copy = Path(shutil.copy(tiny_data / "train.h5", site.root / "copy.h5"))
    site.cluster.command("scontrol", "update", "partitionname=low", "state=down")
    site.submit("error", "-o", f"data.dataset={copy}", *EPOCHS)
    copy.unlink()
    site.cluster.command("scontrol", "update", "partitionname=low", "state=up")
    state = site.wait_for("error", "0", "failed")
    assert state["cause"] == "error"
    assert "copy.h5" in state["reason"]
    eventually(lambda: not site.squeue("--states=PD,R"))
    assert site.ends("error") == ["error"]
    assert len(submissions(site.fold("0", "error").run)) == 1


def test_a_run_that_waits_for_another_follows_its_successors(site: SlurmSite) -> None:
    """The first job is requeued, killed and replaced, and ended by somebody before its run is resumed."""
    site.profile("one", memory_gb=1, retries={"memory": 1})
    site.submit("before", "-o", "train.epochs=300", site="one")
    fold = site.fold("0", "before")
    site.wait_for_snapshot(fold)
    site.submit("after", "--after", "before", "-o", "train.epochs=1")
    site.cluster.command("scancel", "--signal=USR2", site.job("before"))
    eventually(lambda: len(fold.attempts()) == 2 and site.states("before")["0"]["state"] == "running")
    os.kill(site.pid("before"), signal.SIGKILL)
    eventually(lambda: len(fold.attempts()) == 3 and site.states("before")["0"]["state"] == "running")
    assert len(submissions(fold.run)) == 2
    assert site.states("after")["0"]["reason"] == "PENDING (Dependency)"
    site.cluster.command("scancel", site.job("before"))
    eventually(lambda: "the run that it waits for failed" in site.states("after")["0"]["reason"])
    refused = site.run("submit", "tiny.toml", "--name", "third", "--fold", "0", "--site", "test", "--after", "before")
    assert refused.returncode == 5
    assert "its folds 0 are neither finished nor alive; `contrails resume before` first" in refused.stderr
    assert site.run("resume", "before").returncode == 0
    eventually(lambda: site.states("after")["0"]["reason"] == "PENDING (Dependency)")
    site.wait_for_done("after")
    assert fold.done.exists()


def test_scancel_is_final_until_the_run_is_submitted_again(site: SlurmSite, undisturbed: dict[str, str]) -> None:
    site.submit("cancelled", *EPOCHS)
    site.wait_for_snapshot(site.fold("0", "cancelled"))
    site.cluster.command("scancel", site.job("cancelled"))
    state = site.wait_for("cancelled", "0", "cancelled")
    assert state["step"] > 0
    time.sleep(8)  # Slurm would start a requeued job after 6 s
    assert not site.squeue()
    site.submit("cancelled", *EPOCHS)
    site.wait_for_done("cancelled")
    assert weights(site.fold("0", "cancelled")) == undisturbed


def test_a_finished_fold_that_is_started_again_does_nothing(site: SlurmSite) -> None:
    site.submit("finished", "-o", "train.epochs=1")
    fold = site.fold("0", "finished")
    site.wait_for_done("finished")
    before = weights(fold)
    eventually(lambda: not site.squeue("--states=R,CG"))
    site.cluster.command("scontrol", "requeue", site.job("finished"))
    eventually(lambda: not site.squeue("--states=PD,R,CG"), 60)
    assert len(fold.attempts()) == 1
    assert weights(fold) == before
