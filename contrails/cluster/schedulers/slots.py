"""Slots: the limit on folds that train at once on this machine; per root of runs, and per GPU for all roots.

A slot is a lock on a file. It is held by every process that has the descriptor, including children, and the kernel
releases it when the last of them has ended, however it ended.
"""

import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from contrails.errors import NodeError
from contrails.files import storage
from contrails.locks import try_lock
from contrails.runs.folder import Run

if TYPE_CHECKING:
    from contrails.cluster.schedulers.sites import Site
    from contrails.runs.config import ComputeSection

DEVICES = "CONTRAILS_DEVICES"
"""Variable with the GPUs that a job of this machine may use; submitit does not pass on CUDA_VISIBLE_DEVICES."""

_RETRY_S = 0.5


@dataclass(frozen=True)
class Slot:
    """Permission for one training process: its lock, and its GPU if it trains on one."""

    lock: Path
    device: str | None = None


def slots_of(run: Run, site: "Site", compute: "ComputeSection") -> list[Slot]:
    """Return the slots of this machine that a job of a run may take.

    Raises:
        NodeError: there are fewer GPUs than a fold needs.
    """
    host, num_ranks, wanted = socket.gethostname(), compute.num_ranks, site.folds_at_a_time * compute.num_ranks
    if compute.device == "cpu":
        return [Slot(run.slot(f"{host}-{number}")) for number in range(wanted)]
    devices = [name for name in os.environ.get(DEVICES, "").split(",") if name]
    if len(devices) < num_ranks:
        raise NodeError(
            f"expected {num_ranks} GPUs for a fold, found {', '.join(devices) or 'none'}; check `nvidia-smi -L` and "
            f"CUDA_VISIBLE_DEVICES, then go on with `contrails resume {run.typed}`"
        )
    # each rank of a fold needs its own GPU; folds of a single rank share GPUs if folds_at_a_time exceeds their number
    count = (wanted if num_ranks == 1 else min(wanted, len(devices))) or len(devices)
    folder = Path.home() / ".cache" / "contrails" / "slots"
    slots = []
    for number in range(count):
        name, turn = devices[number % len(devices)], number // len(devices)
        slots.append(Slot(folder / f"{host}-{name.replace('/', '_')}-{turn}.lock", name))
    return slots


def take_slots(slots: Sequence[Slot], wanted: int, given_up: Callable[[], bool]) -> dict[Slot, int]:
    """Wait until `wanted` slots are free at the same moment, and take them.

    Returns:
        The descriptor that holds each slot; empty if `given_up` returned True meanwhile.
    """
    assert 1 <= wanted <= len(slots)
    for folder in {slot.lock.parent for slot in slots}:
        with storage(folder, "create"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    while (taken := _try(slots, wanted)) is None:
        if given_up():
            return {}
        time.sleep(_RETRY_S)
    return taken


def _try(slots: Sequence[Slot], wanted: int) -> dict[Slot, int] | None:
    """Take all slots or none: two jobs that each held half would deadlock."""
    taken: dict[Slot, int] = {}
    for number, slot in enumerate(slots):
        descriptor = _lock(slot.lock)
        if descriptor is not None:
            taken[slot] = descriptor
        if len(taken) == wanted:
            return taken
        # stop early and release, so that a competing job gets all of its slots
        if len(taken) + len(slots) - number - 1 < wanted:
            break
    for descriptor in taken.values():
        os.close(descriptor)
    return None


def _lock(path: Path) -> int | None:
    with storage(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        if try_lock(descriptor, path):
            return descriptor
    os.close(descriptor)
    return None
