"""Requests that no node can ever satisfy, which PBS takes and leaves in the queue for ever."""

import pytest

from contrails.submitit_pbs.avoid import avoiding
from contrails.submitit_pbs.limits import decide_memory_mb, parse_nodes, shortage

NODES = parse_nodes(
    "Name=n1|Mom=n1|state=free|resources_available.mem=64gb|resources_available.ncpus=8|resources_available.ngpus=0|"
    "resources_available.cluster=small|resources_assigned.ncpus=8|comment=a \\| b\n"
    "Name=n2|state=offline|resources_available.mem=512gb|resources_available.ncpus=4|resources_available.ngpus=2|"
    "resources_available.gpu_cap=sm_80,compute_80|resources_available.cluster=galdor|resources_available.cl_big=True\n"
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
        ("1:ncpus=8:ngpus=1", "ncpus=8:ngpus=1: some nodes have a part of it, none has all"),
        ("1:ncpus=1:cluster=nowhere", "cluster=nowhere: nodes have galdor, small"),
        ("1:ncpus=1:cl_small=False", None),  # a node that does not tell is one where it is false
        ("1:ncpus=4:ngpus=2:cl_big=False", "ncpus=4:ngpus=2:cl_big=False: some nodes have a part of it, none has all"),
        ("1:ncpus=1:cluster=^small", None),
    ],
)
def test_what_no_node_has(select: str, lacking: str | None) -> None:
    assert shortage(["-N", "x", "-l", f"select={select}", "-l", "walltime=01:00:00"], NODES) == lacking


@pytest.mark.parametrize(
    ("select", "num_failures", "expected"),
    [
        ("1:ncpus=8:mem=1000mb", 0, 1000),
        ("1:ncpus=8:mem=1000mb", 1, 1500),
        ("1:ncpus=8:mem=1000mb", 2, 2250),
        ("1:ncpus=8:mem=60000mb", 1, 65536),  # the one node with 8 cores
        ("1:ncpus=4:mem=60000mb", 1, 90000),  # the other one has more
        ("1:ncpus=64:mem=60000mb", 1, 90000),  # no node tells
        ("1:ncpus=8", 1, None),
    ],
)
def test_memory_grows_with_the_failures_up_to_that_of_a_node(
    select: str, num_failures: int, expected: int | None
) -> None:
    assert decide_memory_mb(["-l", f"select={select}"], num_failures, NODES) == expected


def cluster(**marks: str) -> str:
    """Return what pbsnodes says of nodes, each with these words: `a1="cl_a=True|state=down"`."""
    lines = []
    for name, words in marks.items():
        fields = {"state": "free", "ncpus": "8", "host": f"{name}.site.org"}
        fields |= {key: value for key, _, value in (word.partition("=") for word in words.split("|") if word)}
        state = fields.pop("state")
        shown = "|".join(f"resources_available.{key}={value}" for key, value in fields.items())
        lines.append(f"Name={name}|state={state}|{shown}")
    return "\n".join(lines)


OLD, NEW = "cl_old=True|gpu=True", "cl_new=True|gpu=True"


@pytest.mark.parametrize(
    ("select", "nodes", "failed", "expected"),
    [
        ("ncpus=4", cluster(a1=OLD, b1=NEW), ["a1.site.org"], {"cl_old": "False"}),
        ("ncpus=4", cluster(a1=OLD, a2=OLD, b1=NEW), ["a1"], {"cl_old": "False"}),  # not what all have
        ("ncpus=4:gpu=True", cluster(a1="gpu=True", b1=""), ["a1"], None),  # what is asked for is not avoided
        ("ncpus=4", cluster(a1=OLD, b1=NEW, c1="gpu=True"), ["a1", "b1"], {"cl_old": "False", "cl_new": "False"}),
        ("ncpus=4", cluster(a1="", b1=""), ["a1"], {"host": "b1.site.org"}),  # no marks: a place
        ("ncpus=4", cluster(a1=OLD, a2=OLD), ["a1"], {"host": "a2.site.org"}),  # all of one cluster
        ("ncpus=4", cluster(a1="", b1="state=down", c1=""), ["a1"], {"host": "c1.site.org"}),
        ("ncpus=4", cluster(a1="", b1="state=job-busy"), ["a1"], None),  # it may be busy for long
        ("ncpus=4", cluster(a1=OLD, b1="cl_new=True|state=job-busy"), ["a1"], {"cl_old": "False"}),
        ("ncpus=4", cluster(a1=OLD, b1="ncpus=2"), ["a1"], None),  # too small
        ("ncpus=4", cluster(a1=OLD, b1=NEW), ["elsewhere"], None),
        ("ncpus=4:host=a1.site.org", cluster(a1=OLD, b1=NEW), ["a1"], None),  # the user wants it so
        ("ncpus=4", "", ["a1"], None),
    ],
)
def test_how_a_node_that_failed_is_avoided(
    select: str, nodes: str, failed: list[str], expected: dict[str, str] | None
) -> None:
    assert avoiding(["-l", f"select=1:{select}"], parse_nodes(nodes), failed) == expected
