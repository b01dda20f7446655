"""CUDA graphs: the forward pass in training and its gradients are captured once and then launched as a whole.

With small models, a GPU computes faster than the CPU can launch its kernels one by one.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from contrails.errors import TrainingError
from contrails.models.outputs import Outputs

Forward = Callable[[torch.Tensor], Outputs]

_WARM_UPS = 3
"""Passes before the capture, as in torch: libraries allocate memory and caches are filled in the first ones."""

_NEXT = "set train.cuda_graph to false, and submit under a new --name"


class GraphedForward:
    """The forward pass of a model in training, by CUDA graphs for batches of one size; others run as without graphs.

    Outputs and gradients are in memory that the next call overwrites, so a step may call it only once. With
    deterministic kernels, the first call checks that the graphs give the same bits as a pass without them.
    """

    def __init__(self, forward: Forward, model: nn.Module, batch_size: int) -> None:
        """Capture nothing yet; `forward` runs `model` and enters autocast itself, so that its cache begins empty."""
        self._forward, self._model, self._batch_size = forward, model, batch_size
        self._captured: _Captured | None = None

    def __call__(self, inputs: torch.Tensor) -> Outputs:
        """Return the outputs of the model, as without graphs.

        Raises:
            TrainingError: the model cannot be captured, or gives other bits.
        """
        if len(inputs) != self._batch_size:
            return self._forward(inputs)
        if self._captured is None:
            with _unchanged(self._model, inputs.device):
                self._captured = _Captured(self._forward, self._model, inputs)
            if torch.are_deterministic_algorithms_enabled():
                self._require_same_bits(self._captured, inputs)
        return self._captured(inputs)

    def _require_same_bits(self, captured: "_Captured", inputs: torch.Tensor) -> None:
        found = [self._results(run, captured.parameters, inputs) for run in (self._forward, captured)]
        # NaN is reported by training itself, with its cause
        if not all(torch.allclose(one, other, 0, 0, equal_nan=True) for one, other in zip(*found, strict=True)):
            raise TrainingError(f"expected the same bits with CUDA graphs as without, found others; {_NEXT}")

    def _results(self, run: Forward, parameters: tuple[nn.Parameter, ...], inputs: torch.Tensor) -> list[torch.Tensor]:
        """Return copies of what a pass computes and changes."""
        with _unchanged(self._model, inputs.device):
            outputs = _tensors(run(inputs))
            gradients = _gradients(outputs, parameters, [output.detach() for output in outputs])
            made = [*outputs, *(gradient for gradient in gradients if gradient is not None), *self._model.buffers()]
            return [tensor.detach().clone() for tensor in made]


class _Captured:
    """The graphs of a forward pass and of its gradients, and the tensors that they read and write."""

    def __init__(self, forward: Forward, model: nn.Module, inputs: torch.Tensor) -> None:
        self.inputs = inputs.clone()
        self.parameters = tuple(parameter for parameter in model.parameters() if parameter.requires_grad)
        self.forward_graph, self.backward_graph = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        training = torch.cuda.current_stream(inputs.device)
        stream: Any = torch.cuda.Stream(inputs.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(training)
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                outputs = _tensors(forward(self.inputs))
                _gradients(outputs, self.parameters, [torch.zeros_like(output) for output in outputs])
            del outputs
        training.wait_stream(stream)
        # other threads gather batches and write snapshots meanwhile: only this thread must not wait for the GPU
        options: dict[str, Any] = {"stream": stream, "capture_error_mode": "thread_local"}
        try:
            with torch.cuda.graph(self.forward_graph, **options):
                self.outputs = forward(self.inputs)
            outputs = _tensors(self.outputs)
            self.changes = [torch.zeros_like(output) for output in outputs]
            with torch.cuda.graph(self.backward_graph, pool=self.forward_graph.pool(), **options):
                self.gradients = _gradients(outputs, self.parameters, self.changes)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise TrainingError(f"expected a model that a CUDA graph can hold: {error}; {_NEXT}") from error

    def __call__(self, inputs: torch.Tensor) -> Outputs:
        return _with(self.outputs, iter(_Replay.apply(self, inputs, *self.parameters)))


class _Replay(torch.autograd.Function):
    """A launch of both graphs, as one operation of autograd on the model's parameters."""

    @staticmethod
    def forward(ctx: Any, captured: _Captured, inputs: torch.Tensor, *_: nn.Parameter) -> tuple[torch.Tensor, ...]:
        ctx.captured = captured
        captured.inputs.copy_(inputs)
        captured.forward_graph.replay()
        return tuple(output.detach() for output in _tensors(captured.outputs))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *changes: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        for own, change in zip(ctx.captured.changes, changes, strict=True):
            own.copy_(change)
        ctx.captured.backward_graph.replay()
        gradients = ctx.captured.gradients
        return None, None, *(gradient if gradient is None else gradient.detach() for gradient in gradients)


@contextmanager
def _unchanged(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Restore the model's buffers, such as batch-norm statistics, and the random generators after the body."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with torch.random.fork_rng([device]):
        yield
    for buffer, values in before:
        buffer.copy_(values)


def _gradients(
    outputs: list[torch.Tensor], parameters: Iterable[nn.Parameter], changes: list[torch.Tensor]
) -> tuple[torch.Tensor | None, ...]:
    return torch.autograd.grad(outputs, tuple(parameters), changes, allow_unused=True)


def _tensors(outputs: Outputs) -> list[torch.Tensor]:
    """Return the tensors of outputs in the order in which `_with` puts them back."""
    values = (value if isinstance(value, tuple) else (value,) for value in outputs)
    return [tensor for value in values for tensor in value if tensor is not None]


def _with(outputs: Outputs, tensors: Iterator[torch.Tensor]) -> Outputs:
    """Return outputs with the same heads and other tensors."""
    new = (
        tuple(next(tensors) for _ in value) if isinstance(value, tuple) else None if value is None else next(tensors)
        for value in outputs
    )
    return Outputs(*new)  # type: ignore[arg-type]
