"""Whether a request can ever run: PBS takes what no node can satisfy, and lets it wait for ever.

Reads the select of a job and the nodes as `pbsnodes -av -F dsv` prints them.
"""

import re
from collections.abc import Mapping, Sequence

from contrails.cluster.pbs.script import select_of

Nodes = Sequence[Mapping[str, str]]
"""Resources of each node by name, as text."""

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40, "p": 2**50}


def parse_nodes(text: str) -> Nodes:
    """Return what each node has in all, used or not.

    >>> parse_nodes("Name=n1|state=free|resources_available.ncpus=8|resources_assigned.ncpus=8")
    [{'ncpus': '8'}]
    """
    pairs = [[field.partition("=") for field in re.split(r"(?<!\\)\|", line)] for line in text.splitlines() if line]
    prefix = "resources_available."
    return [{key.removeprefix(prefix): value for key, _, value in row if key.startswith(prefix)} for row in pairs]


def shortage(options: Sequence[str], nodes: Nodes) -> str | None:
    """Return what no node has of what the options of qsub ask for, or None if one could run the job.

    A resource that no node tells of is not judged: it may be the server's, or measured when a job starts.
    """
    told = {name for node in nodes for name in node}
    wanted = {name: value for name, value in select_of(options).items() if name in told}
    if any(all(_has(node, name, value) for name, value in wanted.items()) for node in nodes):
        return None
    alone = [name for name, value in wanted.items() if not any(_has(node, name, value) for node in nodes)]
    if alone:
        return "; ".join(f"{name}={wanted[name]}: nodes have {_range(nodes, name)}" for name in alone)
    asked = ":".join(f"{name}={value}" for name, value in wanted.items())
    return f"{asked}: some nodes have one of it, none has all"


def largest_gb(nodes: Nodes) -> float | None:
    """Return the memory of the largest node; None where none tells of it."""
    sizes = (_number(node.get("mem", "")) for node in nodes)
    return max((size / 2**30 for size in sizes if size is not None), default=None)


def _has(node: Mapping[str, str], name: str, value: str) -> bool:
    """Return whether a node has as much as this, or one of these."""
    found, wanted = _number(node.get(name, "0")), _number(value)
    if wanted is not None:
        return found is not None and found >= wanted
    alternatives = set(value.strip('"').split(","))
    return bool(alternatives & set(node.get(name, "").strip('"').split(",")))


def _number(text: str) -> float | None:
    """Return a count, or the bytes of a size."""
    found = re.fullmatch(r"([\d.]+)([kmgtp]?)[bw]?", text.strip().lower())
    return float(found[1]) * _UNITS[found[2]] if found else None


def _range(nodes: Nodes, name: str) -> str:
    values = sorted({node[name] for node in nodes if name in node}, key=lambda value: (_number(value) or 0.0, value))
    return ", ".join(values[-5:])
