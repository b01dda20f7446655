"""Bilinear resizing on a GPU with deterministic algorithms, as matrix products.

There torch replaces its bilinear kernel by one whose gradient scatters with accumulation, which is many times slower.
Along each axis a bilinear resize is linear, so it is a product with a matrix that has two weights per row. Products are
fast, and deterministic in both directions.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode


def deterministic_resizing(images: torch.Tensor) -> AbstractContextManager[object]:
    """Return a context in which every bilinear resize is deterministic, in smp's and timm's layers too."""
    needs_products = images.is_cuda and torch.are_deterministic_algorithms_enabled()
    return ResizeByProducts() if needs_products else nullcontext()


class ResizeByProducts(TorchFunctionMode):
    """Lets `bilinear` do what `torch.nn.functional.interpolate` is called for in this mode."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[Any], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        if func is functional.interpolate and options["mode"] == "bilinear" and not options["antialias"]:
            return _interpolate(args[0], **options)
        return func(*args, **options)


def bilinear(
    images: torch.Tensor, size: tuple[int, int], scales: tuple[float, float], *, align_corners: bool = False
) -> torch.Tensor:
    """Return images at another size, as `torch.nn.functional.interpolate` does, but for rounding.

    Args:
        images: any layout; that of channels last is kept.
        size: height and width of the result.
        scales: how many pixels of the input one pixel of the result spans, down and across.
        align_corners: the centres of the corner pixels stay where they are; `scales` does not count then.

    Shape:
        (B, C, H, W) to (B, C, *size).
    """
    if scales == (2, 2) and not align_corners and images.shape[-2:] == (2 * size[0], 2 * size[1]):
        return functional.avg_pool2d(images, 2)  # one channel down by 2 is slower by products
    height, width = images.shape[-2:]
    down = _matrix(height, size[0], scales[0], align_corners, images.dtype, images.device)
    across = _matrix(width, size[1], scales[1], align_corners, images.dtype, images.device)
    dtype = torch.promote_types(down.dtype, across.dtype)
    down, across, values = down.to(dtype), across.to(dtype), images.to(dtype)
    with torch.autocast(images.device.type, enabled=False):
        if images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous():
            pixels = values.permute(0, 2, 3, 1)  # (B, H, W, C), contiguous
            rows = (down @ pixels.flatten(2)).unflatten(2, pixels.shape[2:])
            return (across @ rows).permute(0, 3, 1, 2).to(images.dtype)
        return (down @ (values @ across.T)).to(images.dtype)


def _interpolate(
    images: torch.Tensor,
    *,
    size: Any,
    scale_factor: Any,
    align_corners: bool | None,
    recompute_scale_factor: bool | None,
    **_: Any,
) -> torch.Tensor:
    """Resize with the arguments of `torch.nn.functional.interpolate`."""
    sides = images.shape[-2:]
    if size is not None:
        found: Sequence[int] = (size, size) if isinstance(size, int) else size
        height, width = (int(side) for side in found)
        scales = sides[0] / height, sides[1] / width
    else:
        factors = scale_factor if isinstance(scale_factor, Sequence) else (scale_factor, scale_factor)
        height, width = (int(side * factor) for side, factor in zip(sides, factors, strict=True))
        scales = 1 / factors[0], 1 / factors[1]
        if recompute_scale_factor:
            scales = sides[0] / height, sides[1] / width
    return bilinear(images, (height, width), scales, align_corners=bool(align_corners))


_EXACT_SCALES = {2.0**power for power in range(-6, 7)}
"""Scales whose weights are multiples of 1/128, which bf16 and fp16 hold."""

_made: dict[tuple[object, ...], torch.Tensor] = {}


def _matrix(
    before: int, after: int, scale: float, align_corners: bool, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return the weights of the pixels along one axis, (after, before); made once per size, as a GPU waits for a copy.

    They are of type `dtype` where that holds them exactly, else float32: rounded weights would not add up to 1, and
    change the brightness. The position in the source is computed as torch does in aten/src/ATen/native/UpSample.h.
    """
    key = (before, after, scale, align_corners, dtype, device)
    if key in _made:
        return _made[key]
    with torch.inference_mode(False):  # what is made in inference mode cannot take part in a training later
        pixels = torch.arange(after, dtype=torch.float32)
        if align_corners:
            source = pixels * ((before - 1) / max(after - 1, 1))
        else:
            source = (scale * (pixels + 0.5) - 0.5).clamp(min=0)
        first = source.floor().long().clamp(max=before - 1)
        beyond = source - first
        weights = torch.zeros(after, before)
        weights[torch.arange(after), first] += 1 - beyond
        weights[torch.arange(after), (first + 1).clamp(max=before - 1)] += beyond
        is_exact = (scale in _EXACT_SCALES and not align_corners) or dtype == torch.float64
        _made[key] = weights.to(device, dtype if is_exact else torch.float32)
    return _made[key]
