"""How a benchmark is measured and shown: peers in turn, the median of several rounds, a goal that holds or does not."""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.table import Table


@dataclass
class Result:
    """One measured quantity; `goal` is what `value` must reach."""

    name: str
    value: float
    unit: str
    goal: str
    holds: bool
    peers: dict[str, float] = field(default_factory=dict)


def rates(contestants: dict[str, Callable[[], int]], rounds: int = 5) -> dict[str, float]:
    """Return the median rate of each contestant, which returns how many units it did; they take turns."""
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for contestant in contestants.values():
        contestant()  # warm caches and workers
    for _ in range(rounds):
        for name, contestant in contestants.items():
            started = time.perf_counter()
            units = contestant()
            measured[name].append(units / (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in measured.items()}


def show(title: str, results: list[Result]) -> None:
    """Print the results as a table, or with --json as a list of objects."""
    if "--json" in sys.argv:
        print(json.dumps([asdict(result) for result in results], indent=1))
        return
    table = Table(title=title)
    for heading in ("what", "measured", "peers", "goal", "holds"):
        table.add_column(heading, overflow="fold")
    for result in results:
        peers = ", ".join(f"{name} {value:,.4g}" for name, value in result.peers.items())
        value = f"{result.value:,.4g} {result.unit}"
        table.add_row(result.name, value, peers, result.goal, "yes" if result.holds else "NO")
    Console().print(table)
