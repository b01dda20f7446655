"""Ranks: the processes of one node that train one fold together, one GPU each.

Rank 0 is the fold's process: it claims the attempt, starts the others and alone writes anything. All hold the same
state; a batch is split among them, and its gradient is summed in an order that never changes, so that a fold of several
ranks resumes as exactly as one of a single rank. They agree on a stop after every step.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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


class Ranks:
    """This process among `count`; without arguments it is alone."""

    def __init__(self, number: int = 0, count: int = 1) -> None:
        self.number, self.count = number, count
        # flags are agreed on the CPU: nothing waits for a GPU
        self._control: Any = distributed.new_group(backend="gloo") if count > 1 else None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.number == 0

    def agree(self, *, asked: bool) -> bool:
        """Return whether any rank asked."""
        if self.count == 1:
            return asked
        flag = torch.tensor([asked], dtype=torch.uint8)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX, group=self._control)
        return bool(flag)

    def collect(self, items: list[T]) -> list[T]:
        """Return the items of all ranks, those of the first one first."""
        if self.count == 1:
            return items
        of_each: list[list[T]] = [[]] * self.count
        distributed.all_gather_object(of_each, items, group=self._control)
        return [item for one in of_each for item in one]

    def add(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over the ranks, in place, and return it."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    def add_gradients(self, model: nn.Module) -> None:
        """Sum the gradients of all ranks, all at once.

        DistributedDataParallel sums them in buckets, which it sorts anew after its first step: a resumed run of three
        ranks then ends in other bits. One sum has one order.
        """
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        flat = self.add(torch.cat([gradient.flatten() for gradient in gradients]))
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])

    def share_buffers(self, model: nn.Module) -> None:
        """Give all ranks the buffers of the first, such as the running statistics of batch norm."""
        if self.count > 1:
            for buffer in model.buffers():
                distributed.broadcast(buffer, 0)


@contextmanager
def joined(
    fold: Fold, attempt: Attempt, job: JobContext, rank: RankContext | None, count: int, device: str
) -> Iterator[Ranks]:
    """Start the other ranks, or join as `rank`; all have the same job.

    Raises:
        NodeError: the node has fewer GPUs than ranks.
    """
    if count == 1:
        yield Ranks()
        return
    if device == "cuda" and torch.cuda.device_count() < count:
        raise NodeError(f"expected {count} GPUs for fold {fold.key}, found {torch.cuda.device_count()} on this node")
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
        distributed.init_process_group(backend, init_method=f"file://{meeting}", rank=number, world_size=count)
        stack.callback(distributed.destroy_process_group)
        yield Ranks(number, count)


def _start(fold: Fold, rank: RankContext) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "contrails.train.rank", str(fold.run.path), fold.key, rank.to_json()]
    descriptors = [] if rank.job.ram_fd is None else [rank.job.ram_fd]
    with held_back(SIGNALS):  # until it can stop with the others
        return subprocess.Popen(command, pass_fds=descriptors)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a rank that holds nothing of its own."""
    process.kill()
    process.wait()
