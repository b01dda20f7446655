"""How a job keeps off nodes that failed: PBS has no word for that, only for what a node is to have.

Measured on OpenPBS 23.06: a boolean resource of nodes, such as the `cl_NAME` of a cluster, can be asked for with False,
and a node without it counts as False. `host=NAME` asks for one node. `host!=NAME` is refused by qsub; `host=^NAME`,
which some sites have added, is taken everywhere else too, and waits for ever. So a cluster is avoided where the nodes
say which one they belong to, and else another node is named, one that is free and has all that is asked for.
"""

from collections.abc import Collection, Sequence

from contrails.submitit_pbs.limits import Node, able_nodes
from contrails.submitit_pbs.script import select_of


def avoiding(options: Sequence[str], nodes: Sequence[Node], failed: Collection[str]) -> dict[str, str] | None:
    """Return what to ask for in addition, so that a job does not start on a node that failed.

    Args:
        options: of qsub, for the job.
        nodes: of the cluster.
        failed: hosts on which the job failed.

    Returns:
        Resources of the select; None where there is no other node, or none that can be named.
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
    """Return whether a node is the host of this name; either may be without its domain."""
    names = {node.name, node.resources.get("host", "")} - {""}
    return any(name.partition(".")[0] == host.partition(".")[0] for name in names)


def _mark(bad: Node, nodes: Sequence[Node], good: Sequence[Node], options: Sequence[str]) -> str | None:
    """Return the boolean resource that the fewest nodes share with a bad one, if enough others lack it."""
    asked = select_of(options)
    names = [name for name, value in bad.resources.items() if value == "True" and name not in asked]
    left = [name for name in names if any(node.resources.get(name) != "True" for node in good)]
    return min(left, key=lambda name: sum(node.resources.get(name) == "True" for node in nodes), default=None)
