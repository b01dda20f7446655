"""Whether a request can ever run: PBS takes what no node can satisfy, and lets it wait for ever.

Compares the select of a job with the nodes, as `pbsnodes -av -F dsv` prints them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from contrails.errors import ClusterError
from contrails.submitit_pbs import client
from contrails.submitit_pbs.script import memory_mb, select_of
from contrails.submitit_pbs.states import size_of

_OF_NODES = {"ncpus", "mem", "ngpus"}
"""Resources that only nodes have: what none tells of, none has."""
_MEMORY_FACTOR = 1.5
_AWAY = {"offline", "down", "state-unknown", "stale", "unresolvable", "maintenance", "sleep"}


@dataclass(frozen=True)
class Node:
    """A node: its state, in PBS's words, and what it has in all, used or not, as text by name."""

    name: str
    state: str
    resources: Mapping[str, str]

    @property
    def is_away(self) -> bool:
        """Whether no job can start there now, whatever runs there."""
        return bool(_AWAY & set(self.state.split(",")))


def read_nodes() -> list[Node]:
    """Return the nodes of the cluster; none where PBS does not show them."""
    try:
        return parse_nodes(client.nodes())
    except ClusterError:
        return []


def parse_nodes(text: str) -> list[Node]:
    """Return the nodes.

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
    """Return what no node has of what the options of qsub ask for, or None if one could run the job.

    Any other resource that no node tells of is not judged: it may be the server's, or measured when a job starts.
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
    return f"{asked}: some nodes have one of it, none has all"


def able_nodes(options: Sequence[str], nodes: Sequence[Node]) -> list[Node]:
    """Return the nodes that have all that the options of qsub ask for, whatever runs there now."""
    wanted = _wanted(options, nodes)
    return [node for node in nodes if _has_all(node, wanted)]


def all_away(options: Sequence[str], nodes: Sequence[Node]) -> str | None:
    """Return which nodes could run the job, with their states, if no job can start on any of them now."""
    able = able_nodes(options, nodes)
    if not able or not all(node.is_away for node in able):
        return None
    return ", ".join(f"{node.name} is {node.state}" for node in able[:5])


def largest_mb(options: Sequence[str], nodes: Sequence[Node]) -> int | None:
    """Return the memory of the largest node that has all else that a job asks for; None where nodes do not tell."""
    wanted = {name: value for name, value in _wanted(options, nodes).items() if name != "mem"}
    sizes = [size_of(node.resources.get("mem", "")) for node in nodes if _has_all(node, wanted)]
    return max((int(size / 2**20) for size in sizes if size is not None), default=None)


def decide_memory_mb(options: Sequence[str], num_failures: int, nodes: Sequence[Node]) -> int | None:
    """Return the memory to ask for after failures in a row for lack of it: half as much again for each.

    It is not more than a node has, for which PBS would let the job wait for ever.

    Args:
        options: of qsub, for the first link of the job.
        num_failures: in a row, without progress between.
        nodes: of the cluster.

    Returns:
        MB; None where the job did not ask for memory.
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
    """Return whether a node has as much as this, or one of these; a boolean that it does not tell of is False."""
    if value == "False":
        return node.resources.get(name, "False") == "False"
    if value.startswith("^"):  # some sites have added it: any but this one
        return node.resources.get(name) != value.removeprefix("^")
    found, wanted = size_of(node.resources.get(name, "0")), size_of(value)
    if wanted is not None:
        return found is not None and found >= wanted
    alternatives = set(value.strip('"').split(","))
    return bool(alternatives & set(node.resources.get(name, "").strip('"').split(",")))


def _range(nodes: Sequence[Node], name: str) -> str:
    found = {node.resources[name] for node in nodes if name in node.resources}
    return ", ".join(sorted(found, key=lambda value: (size_of(value) or 0.0, value))[-5:]) or "none"
