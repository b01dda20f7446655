"""Whether a fold that was killed had come near to the memory of its job: only then does more memory help."""

import resource
import sys
from dataclasses import dataclass

import psutil

_FAR = 0.5
"""Share of the limit below which a kill was not for memory."""


@dataclass(frozen=True)
class Peak:
    """The most memory that was used, and what there was of it, in GB."""

    used_gb: float
    limit_gb: float

    @property
    def is_far(self) -> bool:
        """Whether the limit was far away, so that something else ended what was killed."""
        return self.used_gb < _FAR * self.limit_gb

    def __str__(self) -> str:
        return f"{self.used_gb:.1f} of {self.limit_gb:.1f} GB"


def peak_of(used_gb: float, memory_gb: float | None) -> Peak:
    """Return a peak under a job's memory; without a limit of its own, under that of this machine."""
    return Peak(used_gb, memory_gb or psutil.virtual_memory().total / 1e9)


def used_by_children_gb(num_processes: int) -> float:
    """Return what so many processes side by side have used at most, if each was as large as the largest that ended."""
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return num_processes * largest / 1e9
