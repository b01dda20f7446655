"""Whether a request can ever run: PBS accepts what no node can satisfy, and the job waits forever.

Compares the select of a job with the nodes in the output of `pbsnodes -av -F dsv`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from contrails.errors import ClusterError
from contrails.submitit_pbs import client
from contrails.submitit_pbs.script import memory_mb, select_of
from contrails.submitit_pbs.states import size_of

_OF_NODES = {"ncpus", "mem", "ngpus"}
"""Resources that only nodes have; if no node lists one, no node has it."""
_MEMORY_FACTOR = 1.5
_AWAY = {"offline", "down", "state-unknown", "stale", "unresolvable", "maintenance", "sleep"}


@dataclass(frozen=True)
class Node:
    """A node: its name, its states as PBS names them, and its total resources, used or not, as text by name."""

    name: str
    state: str
    resources: Mapping[str, str]

    @property
    def is_away(self) -> bool:
        """Whether no job can start there now, whatever runs there."""
        return bool(_AWAY & set(self.state.split(",")))


def read_nodes() -> list[Node]:
    """Return the nodes of the cluster; empty if PBS does not list them."""
    try:
        return parse_nodes(client.nodes())
    except ClusterError:
        return []


def parse_nodes(text: str) -> list[Node]:
    """Return the nodes in the output of pbsnodes.

    >>> parse_nodes("Name=n1|state=free|resources_available.ncpus=8|resources_assigned.ncpus=8")
    [Node(name='n1', state='free', resources={'ncpus': '8'})]
    """
    return [_node(line) for line in text.splitlines() if line]


def _node(line: str) -> Node:
    pairs = [field.partition("=") for field in re.split(r"(?<!\\)\|", line)]
    fields, prefix = {key: value for key, _, value in pairs}, "resources_available."
    resources = {key.removeprefix(prefix): value for key, value in fields.items() if key.startswith(prefix)}
    return Node(fields.get("Name", ""), fields.get("state", ""), resources)


def shortage(options: Sequence[str], nodes: Sequence[Node]) -> str | None:
    """Return the requested resources that no node has, and what the nodes have; None if a node could run the job.

    A resource that no node lists is ignored: it may belong to the server, or be measured when a job starts.
    """
    if not nodes:
        return None
    wanted = _wanted(options, nodes)
    if any(_has_all(node, wanted) for node in nodes):
        return None
    alone = [name for name, value in wanted.items() if not any(_has(node, name, value) for node in nodes)]
    if alone:
        return "; ".join(f"{name}={wanted[name]}: nodes have {_range(nodes, name)}" for name in alone)
    asked = ":".join(f"{name}={value}" for name, value in wanted.items())
    return f"{asked}: some nodes have a part of it, none has all"


def able_nodes(options: Sequence[str], nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes that have everything that qsub's options request, whatever runs there now."""
    wanted = _wanted(options, nodes)
    return [node for node in nodes if _has_all(node, wanted)]


def all_away(options: Sequence[str], nodes: Sequence[Node]) -> str | None:
    """Return the nodes that could run the job, with their states, if no job can start on any of them now."""
    able = able_nodes(options, nodes)
    if not able or not all(node.is_away for node in able):
        return None
    return ", ".join(f"{node.name} is {node.state}" for node in able[:5])


def largest_mb(options: Sequence[str], nodes: Sequence[Node]) -> int | None:
    """Return the memory in MB of the largest node that has all other requested resources; None if nodes list none."""
    wanted = {name: value for name, value in _wanted(options, nodes).items() if name != "mem"}
    sizes = [size_of(node.resources.get("mem", "")) for node in nodes if _has_all(node, wanted)]
    return max((int(size / 2**20) for size in sizes if size is not None), default=None)


def decide_memory_mb(options: Sequence[str], num_failures: int, nodes: Sequence[Node]) -> int | None:
    """Return the memory to request after failures for lack of memory: half as much again for each.

    It is at most the memory of the largest node that could run the job; a larger request would wait forever.

    Args:
        options: options of qsub for the first link of the job.
        num_failures: number of such failures since the last progress.
        nodes: nodes of the cluster.

    Returns:
        Memory in MB; None if the job did not request memory.
    """
    first = memory_mb(options)
    if first is None:
        return None
    wanted = int(first * _MEMORY_FACTOR**num_failures)
    return min(wanted, largest_mb(options, nodes) or wanted)


def _wanted(options: Sequence[str], nodes: Sequence[Node]) -> dict[str, str]:
    told = _OF_NODES | {name for node in nodes for name in node.resources}
    return {name: value for name, value in select_of(options).items() if name in told}


def _has_all(node: Node, wanted: Mapping[str, str]) -> bool:
    return all(_has(node, name, value) for name, value in wanted.items())


def _has(node: Node, name: str, value: str) -> bool:
    """Return whether a node has this amount, or one of these values; a boolean that it does not list is False."""
    if value == "False":
        return node.resources.get(name, "False") == "False"
    if value.startswith("^"):  # extension of some sites: any value but this one
        return node.resources.get(name) != value.removeprefix("^")
    found, wanted = size_of(node.resources.get(name, "0")), size_of(value)
    if wanted is not None:
        return found is not None and found >= wanted
    alternatives = set(value.strip('"').split(","))
    return bool(alternatives & set(node.resources.get(name, "").strip('"').split(",")))


def _range(nodes: Sequence[Node], name: str) -> str:
    found = {node.resources[name] for node in nodes if name in node.resources}
    return ", ".join(sorted(found, key=lambda value: (size_of(value) or 0.0, value))[-5:]) or "none"
