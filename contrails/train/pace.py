"""The speed of an attempt, for telemetry and the margin before a stop; results do not depend on it."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_FORGET = 0.99
"""Decay per step of the longest duration, so that one long wait for a disk is forgotten after some minutes."""


class Pace:
    """Times of the steps of an attempt that began at `first_step`."""

    def __init__(self, first_step: int) -> None:
        self._first_step, self._started = first_step, time.monotonic()
        self._waited_s = 0.0
        self.longest_s = 0.0

    @contextmanager
    def step(self) -> Iterator[None]:
        """Time a step."""
        since = time.monotonic()
        yield
        self.longest_s = max(time.monotonic() - since, _FORGET * self.longest_s)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time the wait of a step for its batch."""
        since = time.monotonic()
        yield
        self._waited_s += time.monotonic() - since

    def steps(self, step: int) -> int:
        """Return the number of steps since the attempt began."""
        return step - self._first_step

    def seconds_per_step(self, step: int) -> float | None:
        """Return the mean time per step since the attempt began, with validation; None before its first step."""
        steps = self.steps(step)
        return (time.monotonic() - self._started) / steps if steps else None

    def row(self, step: int, batch_size: int, device: torch.device) -> dict[str, Any]:
        """Return a row of telemetry; `memory` (of the GPU, else of the process) and `resident` are peaks in bytes."""
        pace = self.seconds_per_step(step)
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {
            "step": step,
            "time": time.time(),
            "seconds_per_step": pace,
            "images_per_s": batch_size / pace if pace else None,
            "data_wait_share": self._waited_s / (time.monotonic() - self._started),
            "memory": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident,
            "resident": resident,
            "gpu_use": _gpu_use(device),
        }


def _gpu_use(device: torch.device) -> float | None:
    """Return the fraction of recent time in which the GPU computed; None on a CPU or if the driver does not tell."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:  # an environment of an older version: train without this figure
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except (RuntimeError, pynvml.NVMLError):
        return None
