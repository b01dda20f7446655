"""Folds that fail on a real Slurm cluster, by cause: what is tried again ends in the bits of an undisturbed fold."""

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from contrails.cluster.queue.journal import submissions
from contrails.cluster.status.fold_state import ALIVE
from contrails.files import read_hint, to_json, write_atomic

from local_site import eventually
from slurm_cluster import SlurmCluster
from slurm_site import SlurmSite, tensors, weights

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


@contextmanager
def every_kill_counts_as_memory(site: SlurmSite) -> Iterator[None]:
    """Freeze code in which no kill is far from the memory's limit."""
    memory = site.package / "cluster" / "memory.py"
    original = memory.read_text()
    memory.write_text(original.replace("_FAR = 0.5", "_FAR = 0.0"))
    yield
    memory.write_text(original)


def kill_after_progress(site: SlurmSite, name: str, num_attempts: int) -> None:
    """Kill the attempt of this number once it has written a snapshot."""
    fold = site.fold("0", name)
    eventually(lambda: fold.all_snapshots() and fold.all_snapshots()[0].attempt == num_attempts)
    os.kill(site.pid(name), signal.SIGKILL)


@pytest.mark.usefixtures("undisturbed")
def test_memory_grows_for_kills_in_a_row_and_not_for_those_after_progress(site: SlurmSite) -> None:
    site.profile("often", retries={"memory": 1})
    with every_kill_counts_as_memory(site):
        site.submit("often", *EPOCHS, site="often")
    for number in (1, 2, 3):
        kill_after_progress(site, "often", number)
    site.wait_for_done("often")
    assert site.ends("often") == ["memory", "memory", "memory", ""]
    assert tensors(site.fold("0", "often")) == tensors(site.fold("0", "undisturbed"))
    jobs = submissions(site.fold("0", "often").run)
    assert [job.memory_gb for job in jobs] == [None, 3.0, 3.0, 3.0]
    assert [job.name[-1] for job in jobs] == ["1", "2", "3", "4"]


def test_no_job_asks_for_more_memory_than_a_node_has(site: SlurmSite) -> None:
    site.profile("large", memory_gb=6)
    with every_kill_counts_as_memory(site):
        site.submit("large", *EPOCHS, site="large")
    kill_after_progress(site, "large", 1)
    site.wait_for_done("large")
    assert [job.memory_gb for job in submissions(site.fold("0", "large").run)] == [None, 8000 / 1024]


@pytest.mark.parametrize("victim", ["training", "launcher"])
def test_what_is_killed_far_from_its_memory_is_tried_again_as_it_was(
    site: SlurmSite, undisturbed: dict[str, str], victim: str
) -> None:
    site.profile("wide", memory_gb=7)
    site.submit(victim, *EPOCHS, site="wide")
    site.wait_for_snapshot(site.fold("0", victim))
    pid, job = site.pid(victim), site.job(victim)
    # Slurm measures every 2 s
    eventually(lambda: site.cluster.command("sstat", "-n", "-P", f"--jobs={job}.0", "--format=MaxRSS").strip("0K\n"))
    os.kill(pid if victim == "training" else psutil.Process(pid).ppid(), signal.SIGKILL)
    if victim == "training":
        eventually(lambda: "of 7.0 GB" in str(read_hint(site.fold("0", victim).attempt(1).state).get("reason")))
    site.wait_for_done(victim)
    assert site.ends(victim) == ["killed", ""]
    assert [(one.job_id, one.memory_gb) for one in submissions(site.fold("0", victim).run)] == [(job, None)]
    assert weights(site.fold("0", victim)) == undisturbed


def test_a_fold_that_is_not_done_goes_on_though_srun_says_0(site: SlurmSite, undisturbed: dict[str, str]) -> None:
    script = site.root / "zero.sh"  # what srun says when its slurmstepd was killed
    script.write_text('srun() { command srun "$@"; return 0; }\n')
    site.profile("zero", environment=str(script))
    site.submit("zero", *EPOCHS, site="zero")
    site.wait_for_snapshot(site.fold("0", "zero"))
    launcher = psutil.Process(site.pid("zero")).parent()
    assert launcher is not None
    for process in (*launcher.children(), launcher):
        process.kill()
    site.wait_for_done("zero")
    assert len(site.ends("zero")) == 2
    assert weights(site.fold("0", "zero")) == undisturbed


def test_a_job_that_leaves_no_fold_done_has_not_succeeded(site: SlurmSite) -> None:
    script = site.root / "nothing.sh"
    script.write_text("srun() { return 0; }\n")
    site.profile("nothing", environment=str(script), retries={"lost": 0})
    site.submit("nothing", *EPOCHS, site="nothing")
    state = site.wait_for("nothing", "0", "lost", "failed")
    assert "ended before it began an attempt; the scheduler says FAILED (NonZeroExitCode)" in state["reason"]


def signal_batch_shell(site: SlurmSite, name: str, number: signal.Signals) -> None:
    script = f"job{int(site.job(name)):05d}/slurm_script"
    for process in psutil.process_iter(["cmdline"]):
        if script in " ".join(process.info["cmdline"] or ()):
            process.send_signal(number)


def test_a_job_whose_batch_shell_is_killed_goes_on_or_is_resumed(site: SlurmSite, undisturbed: dict[str, str]) -> None:
    site.submit("shell", *EPOCHS)
    fold = site.fold("0", "shell")
    site.wait_for_snapshot(fold)
    signal_batch_shell(site, "shell", signal.SIGKILL)
    eventually(lambda: site.states("shell")["0"]["state"] not in ALIVE, 240)
    if not fold.done.exists():  # the launcher was too slow to send the job back, in the 4 s that Slurm gives it here
        state = site.states("shell")["0"]
        assert (state["state"], state["cause"]) == ("lost", "lost")
        assert site.run("resume", "shell").returncode == 0
        site.wait_for_done("shell")
    assert site.ends("shell")[0] in ("lost", "")
    assert weights(fold) == undisturbed


def test_a_job_that_ends_without_a_word_made_no_error_and_its_successor_waits_for_nothing(
    site: SlurmSite, undisturbed: dict[str, str]
) -> None:
    site.submit("wordless", *EPOCHS)
    fold = site.fold("0", "wordless")
    site.wait_for_snapshot(fold)
    launcher = psutil.Process(site.pid("wordless")).parent()
    assert launcher is not None
    signal_batch_shell(site, "wordless", signal.SIGSTOP)  # it would say why, if it saw the launcher's end
    for process in (launcher, *launcher.children()):
        process.kill()
    signal_batch_shell(site, "wordless", signal.SIGKILL)
    state = site.wait_for("wordless", "0", "lost", "failed")
    assert (state["state"], state["cause"]) == ("lost", "lost")
    assert state["reason"].startswith("attempt 1 ended without a message at step ")
    assert "the scheduler says FAILED" in state["reason"]
    assert state["reason"].endswith("go on with `contrails resume wordless`")
    # as if its node were another machine, of which nobody here can tell what runs there
    write_atomic(fold.attempt(1).job, to_json(read_hint(fold.attempt(1).job) | {"host": "elsewhere"}))
    assert site.run("resume", "wordless").returncode == 0
    eventually(lambda: len(fold.attempts()) == 2, 120)  # a silence would take 180 s
    site.wait_for_done("wordless")
    assert weights(fold) == undisturbed


def test_a_start_that_takes_all_of_the_walltime_is_told_from_a_margin(site: SlurmSite) -> None:
    task, script = site.package / "cluster" / "job" / "task.py", site.root / "slow.sh"
    original = task.read_text()
    first, _, rest = original.partition("import logging\n")
    task.write_text(f'{first}import logging, os, time\nif "SLOW" in os.environ:\n    time.sleep(60)\n{rest}')
    script.write_text("export SLOW=1\n")
    site.profile("brief", walltime_min=1, margin_s=55, environment=str(script), retries={"walltime": 0})
    site.submit("brief", "-o", "train.epochs=1", site="brief")
    task.write_text(original)
    state = site.wait_for("brief", "0", "failed")
    assert state["cause"] == "walltime"
    assert re.search(r"no step was made within \d+ s, the start took all of the job's time", state["reason"])
    assert "raise walltime_min of the site profile" in state["reason"]
    site.profile("brief")
    typed = re.findall("`contrails ([^`]*)`", state["reason"])
    assert typed == ["resume brief --site brief"]
    assert site.run(*typed[0].split()).returncode == 0
    site.wait_for_done("brief")


def test_a_suspended_job_is_shown_as_such(site: SlurmSite) -> None:
    site.submit("suspended", "-o", "train.epochs=3000")
    site.wait_for_snapshot(site.fold("0", "suspended"))
    site.cluster.command("scontrol", "suspend", site.job("suspended"))
    state = site.wait_for("suspended", "0", "suspended")
    assert state["reason"].startswith("SUSPENDED: it keeps its node")
    site.cluster.command("scontrol", "resume", site.job("suspended"))
    site.wait_for("suspended", "0", "running")
    assert site.run("cancel", "suspended").returncode == 0


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
    assert f"its job {state['job_id']} ended before it began an attempt" in state["reason"]
    assert [job.memory_gb for job in submissions(site.fold("0", "stillborn").run)] == [None, 3.0, 4.5]


def test_jobs_that_are_stopped_before_they_begin_have_a_budget(site: SlurmSite) -> None:
    task = site.package / "cluster" / "job" / "task.py"
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


def test_data_that_are_missing_are_not_tried_again(site: SlurmSite, tiny_data: Path) -> None:
    copy = Path(shutil.copy(tiny_data / "train.h5", site.root / "copy.h5"))
    site.cluster.command("scontrol", "update", "partitionname=low", "state=down")
    site.submit("error", "-o", f"data.dataset={copy}", *EPOCHS)
    copy.unlink()
    site.cluster.command("scontrol", "update", "partitionname=low", "state=up")
    state = site.wait_for("error", "0", "failed")
    assert state["cause"] == "data"
    assert "copy.h5" in state["reason"]
    eventually(lambda: not site.squeue("--states=PD,R"))
    assert site.ends("error") == ["data"]
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
    orphaned = "the run that it waits for failed: go on with `contrails resume before`, and this run follows"
    eventually(lambda: orphaned in site.states("after")["0"]["reason"])
    refused = site.run("submit", "tiny.toml", "--name", "third", "--fold", "0", "--site", "test", "--after", "before")
    assert refused.returncode == 5
    assert "found others: 0; run `contrails resume before` first" in refused.stderr
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
