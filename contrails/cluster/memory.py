"""Whether a killed fold had nearly used up the memory of its job; only then more memory helps."""

import resource
import sys
from dataclasses import dataclass

import psutil

_FAR = 0.5
"""Fraction of the limit; a process killed below it was not killed for memory."""


@dataclass(frozen=True)
class Peak:
    """The peak memory in use, and the limit, in GB."""

    used_gb: float
    limit_gb: float

    @property
    def is_far(self) -> bool:
        """Whether the peak was so far below the limit that memory was not the reason."""
        return self.used_gb < _FAR * self.limit_gb

    def __str__(self) -> str:
        return f"{self.used_gb:.1f} of {self.limit_gb:.1f} GB"


def peak_of(used_gb: float, memory_gb: float | None) -> Peak:
    """Return a peak with the job's memory as its limit, or this machine's memory if the job has none."""
    return Peak(used_gb, memory_gb or psutil.virtual_memory().total / 1e9)


def used_by_children_gb(num_processes: int) -> float:
    """Return an upper bound of the peak memory of that many processes, each as large as the largest ended child."""
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return num_processes * largest / 1e9
