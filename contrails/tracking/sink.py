"""The interface of a tracking tool, independent of W&B.

A sink holds one experiment: a fold or an aggregation. Its rows are ordered and never changed. `open` returns how many
rows the tool already holds, so that each row is sent once, even after a kill.
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
"""`running`: this process will send more; `preempted`: another process may send more later."""


class GoneError(TrackingError):
    """The tool no longer has an experiment that it had before."""


@dataclass(frozen=True)
class Experiment:
    """The description of an experiment, which precedes its rows.

    The tool may keep files in `folder`, and identifies the experiment by `id`. `known` is True if the tool had it.
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
    """An image: `pixels` are uint8 (H, W, 3); each mask is uint8 (H, W), 1 where it is set."""

    pixels: "NDArray[np.uint8]"
    masks: Mapping[str, "NDArray[np.uint8]"]


@dataclass(frozen=True)
class Table:
    """A table of numbers, text, None and pictures; it counts as one row of the experiment."""

    columns: Sequence[str]
    cells: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class References:
    """Files that are not uploaded: the tool gets their addresses."""

    kind: str
    files: Sequence[Path] = field(default_factory=tuple)


class Sink(Protocol):
    """One experiment in one tool; every method raises `TrackingError` if the tool fails."""

    def open(self, experiment: Experiment) -> int:
        """Start or continue the experiment; return how many rows the tool holds."""

    def rows(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows; it may take some seconds until the tool holds them."""

    def media(self, name: str, media: Table | References) -> None:
        """Append a table as a row, or register the addresses of files."""

    def held(self) -> int:
        """Return how many rows the tool holds now."""

    def finish(self, outcome: Outcome, summary: Mapping[str, float | str]) -> None:
        """Wait until everything is sent, and set the final state of the experiment."""
