"""A fold on two nodes of a real Slurm cluster: what dies on either node ends all ranks, and the job goes on."""

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from contrails.files import read_json

from slurm_cluster import SlurmCluster
from slurm_site import SlurmSite, weights

pytestmark = pytest.mark.slow

EPOCHS = ("-o", "train.epochs=20", "-o", "train.batch_size=4")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, cluster: SlurmCluster) -> Iterator[SlurmSite]:
    site = SlurmSite(tmp_path_factory.mktemp("nodes"), tiny_data, cluster)
    site.profile("two", num_nodes=2, num_ranks=4, num_cpus=2, stage_dir="$NODES_TMP/$SLURMD_NODENAME")
    yield site
    site.end_everything()


def processes(module: str) -> dict[str, list[psutil.Process]]:
    """Return the processes of a module of contrails, by the node of the cluster that they run on."""
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter():
        try:
            if module in process.cmdline():
                found.setdefault(process.environ()["SLURMD_NODENAME"], []).append(process)
        except psutil.Error:
            continue
    return found


def test_a_rank_of_another_node_that_dies(site: SlurmSite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NODES_TMP", str(tmp_path))
    site.submit("undisturbed", *EPOCHS, site="two")
    site.wait_for_done("undisturbed")
    site.submit("killed", *EPOCHS, site="two")
    fold = site.fold("0", "killed")
    site.wait_for_snapshot(fold)
    ranks = processes("contrails.train.ranks.process")
    first, other = sorted(ranks)
    assert (len(ranks[first]), len(ranks[other])) == (1, 2)
    ranks[other][0].send_signal(signal.SIGKILL)
    site.wait_for_done("killed")
    assert [site.ends(name) for name in ("undisturbed", "killed")] == [[""], ["lost", ""]]
    assert "one of them ended (on another node" in read_json(fold.attempt(1).state)["reason"]
    assert weights(fold) == weights(site.fold("0", "undisturbed"))
    assert not list(fold.path.glob("attempts/*/meeting.json"))
    assert len(list(tmp_path.glob("n?/train-*.h5"))) >= 2
