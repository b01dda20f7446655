"""Ranks: the processes that train one fold together, with one GPU each, on one node or several.

Rank 0 is the fold's process: it claims the attempt, starts the other ranks of its node, and is the only one that writes
files; `contrails.cluster.job.nodes` starts those of other nodes. All ranks hold the same state. A batch is divided
among them, and the gradients are summed in a fixed order, so that a fold with several ranks resumes byte-identically
too. The ranks agree on a stop after every step.
"""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import distributed, nn

from contrails.errors import NodeError, RankError
from contrails.files import to_json
from contrails.runs.folder import Attempt, Fold
from contrails.train.context import JobContext, RankContext
from contrails.train.ranks.meeting import Poll, hosted, invited
from contrails.train.ranks.start import end_ranks, start_ranks

_PATIENCE = timedelta(hours=1)
"""Longest wait for another rank, as while its node copies the dataset; a rank that ends is noticed at once."""

_GRACE_S = 5.0
"""Time within which a rank of this node has ended after its connection broke."""

_POLL_S = 0.05

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

    def collect(self, items: Sequence[Any]) -> list[Any]:
        """Return the items of all ranks, which JSON can hold, in the order of the ranks."""
        if self.count == 1:
            return list(items)
        # JSON, since torch's all_gather_object would unpickle what comes from the network
        own = torch.frombuffer(bytearray(to_json(items).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        distributed.all_gather(sizes, torch.tensor([own.numel()]), group=self._control)
        padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
        padded[: own.numel()] = own
        texts = [torch.empty_like(padded) for _ in sizes]
        distributed.all_gather(texts, padded, group=self._control)
        found = (bytes(text[: int(size)].tolist()) for text, size in zip(texts, sizes, strict=True))
        return list(chain.from_iterable(json.loads(text) for text in found))

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
    fold: Fold, attempt: Attempt, job: JobContext, rank: RankContext | None, count: int, device: str, poll: Poll
) -> Iterator[Ranks]:
    """Start the other ranks of this node, or join them as `rank`, and yield the group.

    `poll` is called while ranks are waited for; it may raise to stop.

    Raises:
        NodeError: the node has fewer GPUs than ranks.
        RankError: another rank has ended, before or during the body.
    """
    if count == 1:
        yield Ranks()
        return
    number, per_node = 0 if rank is None else rank.number, job.ranks_per_node(count)
    if device == "cuda" and torch.cuda.device_count() < per_node:
        raise NodeError(
            f"expected {per_node} GPUs for fold {fold.key}, found {torch.cuda.device_count()} on this node; ask for "
            "more GPUs in the site profile, or resume on another node"
        )
    children: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        try:
            if rank is None:
                meeting = stack.enter_context(hosted(attempt, job.address))
                children += start_ranks(fold, attempt.number, job, range(1, per_node))
                stack.callback(end_ranks, children)
            else:
                meeting = invited(attempt)
            store = meeting.gather(number, count, partial(_poll, poll, children))
            if rank is None:
                attempt.meeting.unlink(missing_ok=True)  # the token has done its work
            os.environ.update(_NCCL)
            backend = "nccl" if device == "cuda" else "gloo"
            distributed.init_process_group(backend, store=store, rank=number, world_size=count, timeout=_PATIENCE)
            stack.callback(distributed.destroy_process_group)
            yield Ranks(number, count)
        except RuntimeError as error:
            if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
                raise
            raise _lost(fold, attempt, children) from error


def _poll(poll: Poll, children: list[subprocess.Popen[bytes]]) -> None:
    poll()
    if any(child.poll() is not None for child in children):
        raise distributed.DistError("a rank has ended before it joined the others")


def _lost(fold: Fold, attempt: Attempt, children: list[subprocess.Popen[bytes]]) -> RankError:
    """Return the error for a connection that broke; with the exit code of the rank, if it was one of this node."""
    end, codes = time.monotonic() + _GRACE_S, list[int]()
    while not codes and time.monotonic() < end:
        time.sleep(_POLL_S)
        ended = [child.poll() for child in children]
        # a rank that has ended with RankError lost its connection too, so that another one ended first
        codes = [code for code in ended if code and code != RankError.exit_code]
    how = f"with exit code {codes[0]}" if codes else "on another node, or its connection broke"
    error = RankError(
        f"fold {fold.key}: expected all ranks to go on, one of them ended ({how}); its error stands in the logs of "
        f"{attempt.path}; the same job can succeed again: `contrails resume {fold.run.typed}`"
    )
    if codes:
        error.exit_code = codes[0] if codes[0] > 0 else 128 - codes[0]
    return error
