"""Bilinear resizing by matrix products, which training uses on a GPU, beside torch's `interpolate`, both on a CPU."""

import statistics
import time
from collections.abc import Callable

import torch
from table import Result, show
from torch.nn import functional

from contrails.models.resize import ResizeByProducts

SHAPES = {
    "input, 3 channels, 256 to 512": (3, 256, 512),
    "mask, 1 channel, 512 to 256": (1, 512, 256),
    "mask, 1 channel, 384 to 256": (1, 384, 256),
    "decoder, 64 channels, 64 to 128": (64, 64, 128),
    "decoder, 64 channels, 128 to 96": (64, 128, 96),
}
"""Channels and the sides before and after."""

_RECORDS, _ROUNDS = 4, 15
_MOST = 5e-6
"""Largest difference, as in the tests; values are normally distributed."""


def main() -> None:
    torch.set_num_threads(1)
    results = [result for name, shape in SHAPES.items() for result in compared(name, *shape)]
    show(f"resize: {_RECORDS} records, forward and backward, float32, {torch.get_num_threads()} thread", results)


def compared(name: str, channels: int, before: int, after: int) -> list[Result]:
    """Compare values, gradients and CPU times of both ways."""
    torch.manual_seed(0)
    images = torch.randn(_RECORDS, channels, before, before, requires_grad=True)
    change = torch.randn(_RECORDS, channels, after, after)

    def plain() -> list[torch.Tensor]:
        out = functional.interpolate(images, (after, after), mode="bilinear")
        return [out, *torch.autograd.grad(out, images, change)]

    def ours() -> list[torch.Tensor]:
        with ResizeByProducts():
            return plain()

    of_values, of_gradients = (float((a - b).detach().abs().max()) for a, b in zip(ours(), plain(), strict=True))
    found, most = {"values": of_values, "gradients": of_gradients}, max(of_values, of_gradients)
    times = [statistics.median(each) for each in zip(*(timed(ours, plain) for _ in range(_ROUNDS)), strict=True)]
    costs = {"ours, ms": 1e3 * times[0], "interpolate, ms": 1e3 * times[1]}
    return [
        Result(f"{name}: largest difference", most, "", f"{_MOST:g}", most <= _MOST, found),
        Result(f"{name}: CPU time over interpolate", times[0] / times[1], "x", "", None, costs),
    ]


def timed(*functions: Callable[[], object]) -> list[float]:
    """Return the CPU seconds of each function, called in turn."""
    seconds = []
    for function in functions:
        started = time.process_time()
        function()
        seconds.append(time.process_time() - started)
    return seconds


if __name__ == "__main__":
    main()
