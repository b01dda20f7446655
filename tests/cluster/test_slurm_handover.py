"""Folds on a real Slurm cluster that lose their time or their place: they end in the bits of undisturbed ones."""

import json
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from contrails.files import read_json

from local_site import eventually
from slurm_cluster import SlurmCluster
from slurm_site import SlurmSite, weights

pytestmark = pytest.mark.slow

EPOCHS = ("-o", "train.epochs=80")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, cluster: SlurmCluster) -> Iterator[SlurmSite]:
    site = SlurmSite(tmp_path_factory.mktemp("handover"), tiny_data, cluster)
    site.profile("graceless", num_cpus=4, scheduler_arguments={"nodelist": "n2"})
    site.profile("grace", num_cpus=4, partition="lowgrace", scheduler_arguments={"nodelist": "n1"})
    site.profile("minute", walltime_min=1, margin_s=30, scheduler_arguments={"nodelist": "n3"})
    yield site
    site.end_everything()


@pytest.fixture(scope="module")
def undisturbed(site: SlurmSite) -> dict[str, str]:
    site.submit("undisturbed", *EPOCHS)
    site.wait_for_done("undisturbed")
    assert len(site.fold("0", "undisturbed").attempts()) == 1
    return weights(site.fold("0", "undisturbed"))


def preempt(site: SlurmSite, node: str) -> None:
    site.cluster.command("sbatch", "-p", "high", "-c4", "-w", node, "-o", "/dev/null", "--wrap", "sleep 2")


@pytest.mark.parametrize("user_signal", [False, True], ids=["term", "usr2"])
def test_preempted_folds_go_on(site: SlurmSite, undisturbed: dict[str, str], user_signal: bool) -> None:
    site.cluster.reconfigure(user_signal=user_signal)
    names = [f"{profile}-{user_signal}" for profile in ("grace", "graceless")]
    for name in names:
        site.submit(name, *EPOCHS, site=name.partition("-")[0])
    site.wait_for_snapshot(*(site.fold("0", name) for name in names))
    for node in ("n1", "n2"):
        preempt(site, node)
    for name in names:
        site.wait_for_done(name)
        assert site.ends(name) == ["preemption", ""]
        assert weights(site.fold("0", name)) == undisturbed
    assert "stopped at step" in read_json(site.fold("0", names[0]).attempt(1).state)["reason"]


def test_a_job_hands_over_before_its_time_is_over(site: SlurmSite, undisturbed: dict[str, str]) -> None:
    site.submit("minute", "-o", "train.epochs=80", site="minute")
    site.wait_for_done("minute")
    *before, last = site.ends("minute")
    assert set(before) <= {"walltime"}
    assert last == ""
    assert weights(site.fold("0", "minute")) == undisturbed


def test_two_folds_of_one_job_stop_and_go_on_together(site: SlurmSite, undisturbed: dict[str, str]) -> None:
    site.submit("pair", "--folds-per-job", "2", *EPOCHS, fold="0,1")
    site.wait_for_snapshot(site.fold("0", "pair"), site.fold("1", "pair"))
    assert site.states("pair")["1"]["node"] in ("n1", "n2", "n3")
    with site.start("logs", "pair", "--fold", "1", "-f", "-n", "1") as followed:
        shown = iter(followed.stdout or ())
        assert str(site.fold("1", "pair").attempt(1).path) in next(shown)
        site.cluster.command("scancel", "--signal=USR2", site.job("pair"))
        site.wait_for_done("pair", "0", "1")
        later = "".join(shown)  # it ends with the fold
    assert f"==> {site.fold('1', 'pair').attempt(2).stderr} <==" in later
    assert later.index("stopped at step") < later.index("resuming at step") < later.index("is finished")
    assert followed.returncode == 0
    assert [site.ends("pair", key) for key in "01"] == [["preemption", ""]] * 2
    assert site.job("pair", "0") == site.job("pair", "1")
    assert weights(site.fold("0", "pair")) == undisturbed


def test_a_node_that_is_set_down(site: SlurmSite, undisturbed: dict[str, str]) -> None:
    site.submit("down", *EPOCHS, site="graceless")
    site.wait_for_snapshot(site.fold("0", "down"))
    site.cluster.command("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    eventually(lambda: not site.squeue("-w", "n2"))
    site.cluster.resume("n2")
    site.wait_for_done("down")
    assert site.ends("down") == ["preemption", ""]
    assert weights(site.fold("0", "down")) == undisturbed


def test_a_node_that_crashes_and_a_ghost_beside_its_successor(site: SlurmSite, undisturbed: dict[str, str]) -> None:
    site.submit("crash", *EPOCHS)
    fold = site.fold("0", "crash")
    site.wait_for_snapshot(fold)
    (node,) = site.squeue(f"--jobs={site.job('crash')}", "--format=%N")
    launcher = psutil.Process(site.pid("crash")).parent()
    assert launcher is not None
    ghosts = [launcher, *launcher.children()]
    for ghost in ghosts:
        ghost.suspend()
    site.cluster.crash(node, ghosts=True)
    eventually(lambda: len(fold.attempts()) == 2 and fold.all_snapshots()[0].attempt == 2)
    for ghost in ghosts:  # as if a network had come back: both train now
        ghost.resume()
    site.wait_for_done("crash")
    assert weights(fold) == undisturbed
    site.cluster.revive(node)


@pytest.mark.slow
def test_a_drill_does_to_jobs_what_the_scheduler_offers(site: SlurmSite) -> None:
    done = site.run("drill", "--site", "test", "--kills", "6", "--seed", "1", "--json", seconds=900)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["equal"]
    lost = {kill["way"]: kill["steps_lost"] for kill in outcome["kills"]}
    assert set(lost) == {"SIGKILL", "SIGKILL of the whole job", "SIGTERM", "SIGUSR2", "requeue", "walltime"}
    assert [lost[way] for way in ("SIGTERM", "SIGUSR2", "walltime")] == [0, 0, 0]
    assert not list((site.root / "runs").glob("*drill*"))
