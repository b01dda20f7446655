"""A Slurm cluster without accounting that soon forgets its jobs: the folds' own files are what counts."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from local_site import eventually
from slurm_cluster import SlurmCluster, why_not
from slurm_site import SlurmSite, only_cluster

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def forgetful() -> Iterator[SlurmCluster]:
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with only_cluster() as cluster:
        cluster.start(accounting=False)
        yield cluster


@pytest.fixture
def site(tmp_path: Path, tiny_data: Path, forgetful: SlurmCluster) -> Iterator[SlurmSite]:
    site = SlurmSite(tmp_path, tiny_data, forgetful)
    yield site
    site.end_everything()


def test_an_id_that_is_given_twice(site: SlurmSite) -> None:
    """A controller that lost its state gives a job's id to another one, which is neither taken for it nor cancelled."""
    site.cluster.command("scontrol", "update", "partitionname=low", "state=down")
    site.submit("twice", "-o", "train.epochs=1")
    (job,) = site.squeue("--states=PD", "--format=%i")
    site.cluster.restart_controller(forgets=True)
    others = [""]
    while others[-1] != job:
        others.append(site.cluster.command("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 600").strip())
    assert site.states("twice")["0"]["state"] == "lost"
    assert site.run("cancel", "twice").returncode == 0
    assert job in site.squeue("--states=PD,R", "--format=%i")
    site.cluster.command("scancel", *others[1:])
    site.submit("twice", "-o", "train.epochs=1")
    site.wait_for_done("twice")


def test_what_the_scheduler_has_forgotten(site: SlurmSite) -> None:
    """A finished fold is done, one that was ended says why, and one of which nobody knows is lost and can go on."""
    site.submit("done", "-o", "train.epochs=1")
    site.submit("ended", "-o", "train.epochs=3000")
    site.wait_for_snapshot(site.fold("0", "ended"))
    site.wait_for_done("done")
    site.cluster.command("scancel", site.job("ended"))
    site.cluster.command("scontrol", "update", "partitionname=low", "state=down")
    site.submit("lost", "-o", "train.epochs=1")
    (job,) = site.squeue("--states=PD", "--format=%i")
    site.cluster.command("scancel", job)
    eventually(lambda: not site.squeue("--states=all"))
    found = {name: site.states(name)["0"] for name in ("done", "ended", "lost")}
    assert {name: state["state"] for name, state in found.items()} == {
        "done": "done", "ended": "cancelled", "lost": "lost"
    }  # fmt: skip
    assert f"its job {job} ended before it began" in found["lost"]["reason"]
    assert "go on with `contrails resume lost`" in found["lost"]["reason"]
    site.cluster.command("scontrol", "update", "partitionname=low", "state=up")
    site.submit("lost", "-o", "train.epochs=1")
    site.wait_for_done("lost")
