"""Avoiding nodes that failed: PBS cannot exclude a node, only request properties of a node.

Measured on OpenPBS 23.06: a boolean resource of nodes, such as the `cl_NAME` of a cluster, can be requested as False,
and counts as False on a node without it. `host=NAME` requests one node. qsub refuses `host!=NAME`. `host=^NAME` is an
extension of some sites; other sites accept it, but the job waits forever. So if the failed node has a boolean resource
that some other suitable node lacks, that resource is requested as False. Otherwise one free node with all requested
resources is requested by its name.
"""

from collections.abc import Collection, Sequence

from contrails.submitit_pbs.limits import Node, able_nodes
from contrails.submitit_pbs.script import select_of


def avoiding(options: Sequence[str], nodes: Sequence[Node], failed: Collection[str]) -> dict[str, str] | None:
    """Return additional resources to request, so that a job does not start on a node that failed.

    Args:
        options: options of qsub for the job.
        nodes: nodes of the cluster.
        failed: hosts on which the job failed.

    Returns:
        Resources for -l select; None if there is no other node, or none that can be requested.
    """
    able = able_nodes(options, nodes)
    bad = [node for node in nodes if any(_is(node, host) for host in failed)]
    good = [node for node in able if node not in bad and not node.is_away]
    if not good or not bad or "host" in select_of(options):
        return None
    marks = [_mark(node, nodes, good, options) for node in bad]
    without = [node for node in good if all(node.resources.get(str(mark)) != "True" for mark in marks)]
    if without and None not in marks:
        return {str(mark): "False" for mark in marks}
    free = next((node for node in good if node.state == "free" and "host" in node.resources), None)
    return None if free is None else {"host": free.resources["host"]}


def _is(node: Node, host: str) -> bool:
    """Return whether a node has this host name; either name may lack the domain."""
    names = {node.name, node.resources.get("host", "")} - {""}
    return any(name.partition(".")[0] == host.partition(".")[0] for name in names)


def _mark(bad: Node, nodes: Sequence[Node], good: Sequence[Node], options: Sequence[str]) -> str | None:
    """Return the boolean resource of a bad node that the fewest nodes share, if some good node lacks it."""
    asked = select_of(options)
    names = [name for name, value in bad.resources.items() if value == "True" and name not in asked]
    left = [name for name in names if any(node.resources.get(name) != "True" for node in good)]
    return min(left, key=lambda name: sum(node.resources.get(name) == "True" for node in nodes), default=None)
