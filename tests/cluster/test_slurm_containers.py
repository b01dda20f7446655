"""Folds on a real Slurm cluster whose jobs run in a container that has none of Slurm's commands."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import image_folder
from local_site import eventually
from slurm_cluster import SlurmCluster
from slurm_site import SlurmSite, weights

pytestmark = pytest.mark.slow

EPOCHS = ("-o", "train.epochs=40")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, cluster: SlurmCluster) -> Iterator[SlurmSite]:
    if (missing := image_folder.why_not()) is not None:
        pytest.skip(missing)
    site = SlurmSite(tmp_path_factory.mktemp("containers"), tiny_data, cluster)
    image = site.root / "image"
    site.profile("inside", **image_folder.make_image(image))
    yield site
    site.end_everything()
    assert not (image / "usr/bin/squeue").exists()


def test_a_fold_in_a_container_goes_on_as_one_outside(site: SlurmSite) -> None:
    site.submit("outside", *EPOCHS)
    site.submit("inside", *EPOCHS, site="inside")
    fold = site.fold("0", "inside")
    site.wait_for_snapshot(fold)
    site.cluster.command("scancel", "--signal=USR2", site.job("inside"))  # the launcher requeues the job
    eventually(lambda: len(fold.attempts()) == 2 and fold.all_snapshots()[0].attempt == 2)
    os.kill(site.pid("inside"), signal.SIGKILL)  # its teardown does
    site.wait_for_done("inside")
    site.wait_for_done("outside")
    first, second, last = site.ends("inside")
    assert (first, second in ("killed", "memory"), last) == ("preemption", True, "")
    assert weights(fold) == weights(site.fold("0", "outside"))


def test_a_container_that_a_node_does_not_see_is_named(site: SlurmSite) -> None:
    site.profile("gone", **image_folder.make_image(site.root / "gone"))
    site.cluster.command("scontrol", "update", "partitionname=low", "state=down")
    site.submit("gone", site="gone")
    (site.root / "gone").rename(site.root / "elsewhere")
    site.cluster.command("scontrol", "update", "partitionname=low", "state=up")
    reason = site.wait_for("gone", "0", "failed", "lost")["reason"]
    assert f"expected the image {site.root}/gone on the node" in reason


def test_doctor_checks_a_node_in_the_container(site: SlurmSite) -> None:
    checked = site.run("doctor", "--site", "inside", "--job", "--json")
    checks = {check["name"]: check for check in json.loads(checked.stdout)}
    assert checked.returncode == 0, checks
    assert checks["job: package in the container"]["found"].startswith("contrails-hpc ")
    assert checks["job: import torch"]["holds"]
