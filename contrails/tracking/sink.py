"""What a tracking tool must offer, in no tool's own words.

A sink holds one experiment: a fold or an aggregation. Its rows have an order and no row is changed; `open` says how
many the tool already holds, so that sending again after any kill sends each of them once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from contrails.errors import TrackingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Outcome = Literal["running", "preempted", "finished", "failed"]
"""`running`: more will come from this process; `preempted`: more may come later, from another one."""


class GoneError(TrackingError):
    """The tool had the experiment and has it no more."""


@dataclass(frozen=True)
class Experiment:
    """What is known before the first row.

    The tool may keep files in `folder`, and calls the experiment `id`. `known` is what the tool once had.
    """

    folder: Path
    id: str
    group: str
    job_type: str
    name: str
    config: Mapping[str, Any]
    notes: str = ""
    known: bool = False


@dataclass(frozen=True)
class Picture:
    """An image: `pixels` are uint8 (H, W, 3), each mask is uint8 (H, W) with 1 where it is set."""

    pixels: "NDArray[np.uint8]"
    masks: Mapping[str, "NDArray[np.uint8]"]


@dataclass(frozen=True)
class Table:
    """A table to look at; its cells are numbers, text, None and pictures. It is a row of the experiment."""

    columns: Sequence[str]
    cells: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class References:
    """Files that stay where they are: the tool is told their addresses."""

    kind: str
    files: Sequence[Path] = field(default_factory=tuple)


class Sink(Protocol):
    """One experiment in one tool; every method raises `TrackingError` where the tool does not do it."""

    def open(self, experiment: Experiment) -> int:
        """Begin, or go on; return how many rows the tool holds."""

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add rows after those that the tool holds; it may take some seconds until it holds them."""

    def media(self, name: str, media: Table | References) -> None:
        """Add a table as a row, or say where files are."""

    def held(self) -> int:
        """Return how many rows the tool holds by now."""

    def finish(self, outcome: Outcome, summary: Mapping[str, float | str]) -> None:
        """Wait until everything was sent, and say how the experiment stands."""
