"""The sums of gradients over the ranks, which overlap with the backward pass.

Parameters are assigned to buckets once, in the reverse order of the model, which is about the order in which backward
finishes them. Each bucket is one buffer of fixed layout, summed by one collective operation. Buckets are started in
their order, so that all ranks start the same operations in the same order. Therefore the bits of a sum depend neither
on the time at which a gradient is finished, nor on which parameters are frozen, nor on where a run was resumed.
(DistributedDataParallel assigns its buckets again after the first step, so that a resumed run had other bits.)
"""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import distributed, nn

from contrails.train.ranks.group import Ranks

BUCKET_BYTES = 25 * 2**20
"""Size of a bucket; larger buckets need fewer operations, smaller ones can start earlier."""


class GradientSums:
    """Sums the gradients of a model over the ranks; without effect for a single rank.

    A bucket starts during backward once all of its gradients are finished. A bucket with an unused parameter, and all
    buckets after it, start at the end of backward; so do all of them in a step that was not armed.
    """

    def __init__(self, model: nn.Module, ranks: Ranks) -> None:
        """Register a hook on each parameter of the model, which must be on its device already."""
        self._ranks = ranks
        self._buckets = [_Bucket(each) for each in _assigned(model.parameters())] if ranks.count > 1 else []
        self._armed, self._next = False, 0
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    partial(self._on_gradient, bucket)
                )

    def arm(self) -> None:
        """Sum what the next backward finishes; called before the last backward of a step."""
        self._armed, self._next = True, 0
        for bucket in self._buckets:
            bucket.num_missing = sum(parameter.requires_grad for parameter in bucket.parameters)

    def finish(self) -> None:
        """Wait for the sums and write them to the gradients; called before any other collective operation of the step.

        A parameter without a gradient on every rank keeps none, so that the optimiser leaves it unchanged.
        """
        begin, self._armed = self._next if self._armed else 0, False
        for bucket in self._buckets[begin:]:
            bucket.start()
        if self._buckets:
            own = [parameter.grad is not None for bucket in self._buckets for parameter in bucket.parameters]
            present = iter(self._ranks.any_of(own))
            for bucket in self._buckets:
                bucket.finish([next(present) for _ in bucket.parameters])

    def _on_gradient(self, bucket: "_Bucket", _: torch.Tensor) -> None:
        if self._armed:
            bucket.num_missing -= 1
            while self._next < len(self._buckets) and not self._buckets[self._next].num_missing:
                self._buckets[self._next].start()
                self._next += 1


class _Bucket:
    """Parameters whose gradients are summed by one operation; `num_missing` gradients are not finished yet."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters, self.num_missing = parameters, 0
        self._flat = parameters[0].new_zeros(sum(parameter.numel() for parameter in parameters))
        self._parts, offset = list[torch.Tensor](), 0
        for parameter in parameters:
            # the strides of the parameter, which its gradient has too: copies between other strides are slow
            self._parts.append(self._flat.as_strided(parameter.size(), parameter.stride(), offset))
            offset += parameter.numel()
        self._work: Any = None

    @torch.no_grad()
    def start(self) -> None:
        """Start the sum, unless all parameters are frozen, which is so on every rank."""
        if not any(parameter.requires_grad for parameter in self.parameters):
            return
        pairs = list(zip(self._parts, (parameter.grad for parameter in self.parameters), strict=True))
        for part in (part for part, gradient in pairs if gradient is None):
            part.zero_()
        found = [(part, gradient) for part, gradient in pairs if gradient is not None]
        if found:
            torch._foreach_copy_([part for part, _ in found], [gradient for _, gradient in found])
        self._work = distributed.all_reduce(self._flat, async_op=True)

    @torch.no_grad()
    def finish(self, present: list[bool]) -> None:
        """Wait for the sum and write it to the gradients that are `present` on any rank."""
        if self._work is None:
            return
        self._work.wait()
        self._work = None
        gradients, parts = list[torch.Tensor](), list[torch.Tensor]()
        for parameter, part, has_gradient in zip(self.parameters, self._parts, present, strict=True):
            if has_gradient:
                if parameter.grad is None:
                    parameter.grad = torch.empty_like(parameter)
                gradients.append(parameter.grad)
                parts.append(part)
        if gradients:
            torch._foreach_copy_(gradients, parts)


def _assigned(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return the parameters of each bucket; all of a bucket have one dtype and device."""
    buckets: list[list[nn.Parameter]] = []
    filling: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in reversed(list(parameters)):
        kind = parameter.dtype, parameter.device
        if kind not in filling or sum(map(_num_bytes, [*filling[kind], parameter])) > BUCKET_BYTES:
            filling[kind] = []
            buckets.append(filling[kind])
        filling[kind].append(parameter)
    return buckets


def _num_bytes(parameter: nn.Parameter) -> int:
    return parameter.numel() * parameter.element_size()
