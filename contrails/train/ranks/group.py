"""Ranks: the processes on one node that train one fold together, with one GPU each.

Rank 0 is the fold's process: it claims the attempt, starts the other ranks, and is the only one that writes files. All
ranks hold the same state. A batch is divided among them, and the gradients are summed in a fixed order, so that a fold
with several ranks resumes byte-identically too. The ranks agree on a stop after every step.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from contrails.errors import NodeError
from contrails.processes import held_back
from contrails.runs.folder import Attempt, Fold
from contrails.train.context import JobContext, RankContext
from contrails.train.stop import SIGNALS

T = TypeVar("T")

_NCCL = {"NCCL_ALGO": "Ring", "NCCL_PROTO": "Simple"}
"""NCCL would choose by the machine and the size of a message, and sums in another order have other bits."""


class Ranks:
    """The rank of this process among `count`; the default is a single process."""

    def __init__(self, number: int = 0, count: int = 1) -> None:
        self.number, self.count = number, count
        # flags are exchanged by a group on the CPU, so that agreeing does not wait for the GPU
        self._control: Any = distributed.new_group(backend="gloo") if count > 1 else None

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.number == 0

    def agree(self, *, asked: bool) -> bool:
        """Return whether `asked` is true on any rank."""
        return asked if self.count == 1 else self.any_of([asked])[0]

    def any_of(self, flags: Sequence[bool]) -> list[bool]:
        """Return for each flag whether it is true on any rank."""
        found = torch.tensor(flags, dtype=torch.uint8)
        distributed.all_reduce(found, distributed.ReduceOp.MAX, group=self._control)
        return [bool(flag) for flag in found.tolist()]

    def collect(self, items: list[T]) -> list[T]:
        """Return the items of all ranks, in the order of the ranks."""
        if self.count == 1:
            return items
        of_each: list[list[T]] = [[]] * self.count
        distributed.all_gather_object(of_each, items, group=self._control)
        return list(chain.from_iterable(of_each))

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over the ranks, in place, and return it."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    def share_buffers(self, model: nn.Module) -> None:
        """Copy the buffers of rank 0, such as batch-norm statistics, to all ranks."""
        if self.count > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)


@contextmanager
def joined(
    fold: Fold, attempt: Attempt, job: JobContext, rank: RankContext | None, count: int, device: str
) -> Iterator[Ranks]:
    """Start the other ranks, or join them as `rank`, and yield the group.

    Raises:
        NodeError: the node has fewer GPUs than ranks.
    """
    if count == 1:
        yield Ranks()
        return
    if device == "cuda" and torch.cuda.device_count() < count:
        raise NodeError(
            f"expected {count} GPUs for fold {fold.key}, found {torch.cuda.device_count()} on this node; ask for more "
            "GPUs in the site profile, or resume on another node"
        )
    with contextlib.ExitStack() as stack:
        if rank is None:
            folder = Path(tempfile.mkdtemp(prefix="contrails-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            meeting = str(folder / "meeting")
            for other in range(1, count):
                context = RankContext(other, attempt.number, os.getpid(), meeting, job)
                stack.callback(_end, _start(fold, context))
        else:
            meeting = rank.meeting
        number = 0 if rank is None else rank.rank
        backend = "nccl" if device == "cuda" else "gloo"
        os.environ.update(_NCCL)
        distributed.init_process_group(backend, init_method=f"file://{meeting}", rank=number, world_size=count)
        stack.callback(distributed.destroy_process_group)
        yield Ranks(number, count)


def _start(fold: Fold, rank: RankContext) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "contrails.train.ranks.process", str(fold.run.path), fold.key, rank.to_json()]
    descriptors = [] if rank.job.ram_fd is None else [rank.job.ram_fd]
    with held_back(SIGNALS):  # the child begins with them blocked, so that no signal kills it before it has handlers
        return subprocess.Popen(command, pass_fds=descriptors)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill another rank; nothing is lost, as it writes no files."""
    process.kill()
    process.wait()
