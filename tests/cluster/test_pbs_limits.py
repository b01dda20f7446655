"""Requests that no node can ever satisfy, which PBS takes and leaves in the queue for ever."""

import pytest

from contrails.cluster.pbs.limits import parse_nodes, shortage

NODES = parse_nodes(
    "Name=n1|Mom=n1|state=free|resources_available.mem=64gb|resources_available.ncpus=8|resources_available.ngpus=0|"
    "resources_available.cluster=small|resources_assigned.ncpus=8|comment=a \\| b\n"
    "Name=n2|state=offline|resources_available.mem=512gb|resources_available.ncpus=4|resources_available.ngpus=2|"
    "resources_available.gpu_cap=sm_80,compute_80|resources_available.cluster=galdor\n"
)


@pytest.mark.parametrize(
    ("select", "lacking"),
    [
        ("1:ncpus=8:mem=16384mb", None),
        ("1:ncpus=4:ngpus=2:mem=524288mb", None),  # also on a node that is away now
        ('1:ncpus=1:gpu_cap="sm_75,sm_80"', None),
        ("1:ncpus=1:scratch_local=9999gb", None),  # no node tells
        ("1:ncpus=64", "ncpus=64: nodes have 4, 8"),
        ("1:ncpus=1:mem=2048gb:ngpus=3", "mem=2048gb: nodes have 64gb, 512gb; ngpus=3: nodes have 0, 2"),
        ("1:ncpus=1:gpu_cap=cuda75", "gpu_cap=cuda75: nodes have sm_80,compute_80"),
        ("1:ncpus=8:ngpus=1", "ncpus=8:ngpus=1: some nodes have one of it, none has all"),
        ("1:ncpus=1:cluster=nowhere", "cluster=nowhere: nodes have galdor, small"),
    ],
)
def test_what_no_node_has(select: str, lacking: str | None) -> None:
    assert shortage(["-N", "x", "-l", f"select={select}", "-l", "walltime=01:00:00"], NODES) == lacking
