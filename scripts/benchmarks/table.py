"""How a benchmark is measured and shown: peers in turn, the median of several rounds, a goal that holds or does not."""

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_HOLDS = {True: "yes", False: "NO", None: ""}


@dataclass
class Result:
    """One measured quantity; `goal` is what `value` must reach, `holds` is None where there is none.

    `value` is None for what could not be measured; `note` says why, or why a goal does not hold.
    """

    name: str
    value: float | None
    unit: str
    goal: str
    holds: bool | None
    peers: dict[str, float] = field(default_factory=dict)
    note: str = ""


def left_out(name: str, reason: str) -> Result:
    """Return the row of what could not be measured."""
    return Result(name, None, "", "", None, note=reason)


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


def against(name: str, measured: dict[str, float], goals: dict[str, float | None]) -> Iterator[Result]:
    """Yield the ratio of the rate called "ours" to that of each peer; a peer without a goal is shown for comparison."""
    for peer, goal in goals.items():
        ratio = measured["ours"] / measured[peer]
        rate = {"ours/s": measured["ours"], "peer/s": measured[peer]}
        holds = None if goal is None else ratio >= goal
        yield Result(f"{name} over {peer}", ratio, "x", "" if goal is None else f"{goal:g}x", holds, rate)


def show(title: str, results: list[Result]) -> None:
    """Print the results as a table, or with --json as a list of objects."""
    if "--json" in sys.argv:
        print_json(results)
    else:
        print_table(title, results, Console())


def print_json(results: list[Result]) -> None:
    """Print the results as a list of objects."""
    print(json.dumps([asdict(result) for result in results], indent=1))


def print_table(title: str, results: list[Result], console: Console) -> None:
    """Print the results as a table."""
    table = Table(title=title)
    for heading in ("what", "measured", "peers", "goal", "holds"):
        table.add_column(heading, overflow="fold")
    for result in results:
        peers = ", ".join(f"{name} {value:,.4g}" for name, value in result.peers.items())
        shown = [] if result.value is None else [f"{result.value:,.4g} {result.unit}"]
        shown += [escape(result.note)] if result.note else []
        value = "; ".join(shown) if result.value is not None else f"not measured: {''.join(shown)}"
        table.add_row(escape(result.name), value, escape(peers), result.goal, _HOLDS[result.holds])
    console.print(table)
