"""Copies of a state from a GPU, by a GPU that does nothing before somebody waits for it, in either order."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from contrails.train.saved.host import HostCopies

Work = Callable[[], object]


class Event:
    def __init__(self, gpu: "LazyGpu") -> None:
        self.gpu, self.is_over = gpu, False

    def synchronize(self) -> None:
        while not self.is_over:
            self.gpu.work()


class Stream:
    """A queue of work, and of events that it waits for."""

    def __init__(self, gpu: "LazyGpu") -> None:
        self.gpu = gpu
        self.queue: list[Work | Event] = []
        gpu.streams.append(self)

    def record_event(self) -> Event:
        event = Event(self.gpu)
        self.queue.append(lambda: setattr(event, "is_over", True))
        return event

    def wait_event(self, event: Event) -> None:
        self.queue.append(event)

    def wait_stream(self, other: "Stream") -> None:
        self.wait_event(other.record_event())

    def run(self) -> None:
        while self.queue:
            first = self.queue[0]
            if isinstance(first, Event):
                if not first.is_over:
                    return
            else:
                first()
            self.queue.pop(0)


class LazyGpu:
    """Streams, of which the first one, where training is, runs as far as it can before the other does, or after it."""

    def __init__(self, *, is_training_first: bool) -> None:
        self.is_training_first = is_training_first
        self.streams: list[Stream] = []
        self.current = self.training = Stream(self)
        self.num_pinned = 0

    def work(self) -> None:
        for stream in self.streams if self.is_training_first else self.streams[::-1]:
            stream.run()

    @contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def tensor(self, values: torch.Tensor) -> torch.Tensor:
        gpu = self

        class OnGpu(torch.Tensor):
            is_cuda = True

            @classmethod
            def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                options = dict(kwargs or {})
                with torch._C.DisableTorchFunctionSubclass():
                    if func is torch.empty_like:
                        gpu.num_pinned += options.pop("pin_memory")
                        return func(args[0], **options)
                    if func in (torch.Tensor.copy_, torch.Tensor.fill_):
                        assert func is torch.Tensor.fill_ or options == {"non_blocking": True}
                        gpu.current.queue.append(lambda: _plain(func, args))
                        return args[0]
                return super().__torch_function__(func, types, args, options)  # type: ignore[no-untyped-call]

        return values.as_subclass(OnGpu)


def _plain(func: Any, args: Any) -> None:
    with torch._C.DisableTorchFunctionSubclass():
        func(*args)


@pytest.fixture(params=[True, False], ids=["training first", "copies first"])
def lazy_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> LazyGpu:
    gpu = LazyGpu(is_training_first=request.param)
    monkeypatch.setattr("torch.cuda.Stream", lambda _device: Stream(gpu))
    monkeypatch.setattr("torch.cuda.current_stream", lambda _device: gpu.current)
    monkeypatch.setattr("torch.cuda.stream", gpu.on)
    return gpu


def test_a_copy_is_that_of_the_step_at_which_it_was_asked_for(lazy_gpu: LazyGpu) -> None:
    weights, step = lazy_gpu.tensor(torch.zeros(2, 3)), torch.tensor(0)
    again = lazy_gpu.tensor(torch.zeros(2, 3).T.contiguous().T)  # other strides, so another buffer
    copies = HostCopies()
    for number in range(1, 4):
        weights.fill_(number)
        again.fill_(-number)
        step.fill_(number)
        content = {"step": step, "model": [weights, {"same": weights}, again], "name": "a", "none": None}
        copied, wait = copies.copy(content)
        weights.fill_(99)  # the next step
        step.fill_(99)
        assert lazy_gpu.training.queue, "the CPU waited for the GPU"
        wait()
        found = copied["model"]
        assert copied["step"].item() == number
        assert [tensor.unique().tolist() for tensor in (found[0], found[1]["same"], found[2])] == [
            [number],
            [number],
            [-number],
        ]
        assert found[2].stride() == again.stride()
        assert (copied["name"], copied["none"]) == ("a", None)
    assert lazy_gpu.num_pinned == 3


def test_a_copy_on_the_cpu_is_complete_at_once() -> None:
    weights = torch.zeros(3)
    copied, wait = HostCopies().copy({"weights": weights})
    weights.fill_(1)
    wait()
    assert copied["weights"].tolist() == [0, 0, 0]
