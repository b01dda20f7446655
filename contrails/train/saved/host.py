"""Copies of a state in host memory, for a thread that writes them while training continues."""

from collections.abc import Callable
from typing import Any

import torch

from contrails.train.saved.finite import tensors_of


class HostCopies:
    """Copies states to host memory, one after another.

    Copies from a GPU are queued on a stream of their own, into pinned memory that is allocated once and used for every
    copy. So the CPU does not wait for them, and the GPU waits before it changes the state again.
    """

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None
        self._buffers: dict[tuple[object, ...], list[torch.Tensor]] = {}

    def copy(self, content: Any) -> tuple[Any, Callable[[], None]]:
        """Return a copy of nested dictionaries and lists with all tensors in host memory, and a function.

        The copy is complete when the function has returned. It is valid until the next call of `copy`.
        """
        device = next((tensor.device for tensor in tensors_of(content) if tensor.is_cuda), None)
        if device is None:
            return _mapped(content, torch.clone), _nothing
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        training = torch.cuda.current_stream(device)
        free = {kind: list(buffers) for kind, buffers in self._buffers.items()}
        self._stream.wait_stream(training)
        with torch.cuda.stream(self._stream):
            copies = _mapped(content, lambda tensor: self._copied(tensor, free))
            done = self._stream.record_event()
        training.wait_event(done)  # the next step changes the tensors in place
        return copies, done.synchronize

    def _copied(self, tensor: torch.Tensor, free: dict[tuple[object, ...], list[torch.Tensor]]) -> torch.Tensor:
        if not tensor.is_cuda:
            return tensor.clone()
        # a buffer with other strides would need a copy in between, for which the CPU waits
        kind = tensor.dtype, tensor.shape, tensor.stride()
        if not free.get(kind):
            new = torch.empty_like(tensor, device="cpu", pin_memory=True)
            self._buffers.setdefault(kind, []).append(new)
            free.setdefault(kind, []).append(new)
        return free[kind].pop().copy_(tensor, non_blocking=True)


def _mapped(content: Any, function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return nested dictionaries and lists with a function of each tensor in its place."""
    if isinstance(content, torch.Tensor):
        return function(content.detach())
    if isinstance(content, dict):
        return {key: _mapped(value, function) for key, value in content.items()}
    return [_mapped(value, function) for value in content] if isinstance(content, list) else content


def _nothing() -> None:
    """Return at once: copies on a CPU are complete."""
