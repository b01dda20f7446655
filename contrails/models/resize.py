"""Bilinear resizing and adaptive average pooling on a GPU with deterministic algorithms, as matrix products.

With deterministic algorithms on a GPU, torch uses a bilinear kernel whose gradient is many times slower, and refuses
the gradient of adaptive pooling. Both operations are linear along each axis, so they can be computed as products with
a matrix for the rows and one for the columns. Products and their gradients are fast and deterministic.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Kind = Literal["bilinear", "align_corners", "mean"]
"""How a pixel of the result is computed; `mean` is the mean of the input pixels it covers, as in adaptive pooling."""

_EXACT_SCALES = {2.0**power for power in range(-6, 7)}
"""Scales whose bilinear weights are multiples of 1/128, which bf16 and fp16 represent exactly."""

_matrices: dict[tuple[object, ...], torch.Tensor] = {}


def deterministic_resizing(images: torch.Tensor) -> AbstractContextManager[object]:
    """Return a context in which every resize is deterministic, in smp's and timm's layers too."""
    needs_products = images.is_cuda and torch.are_deterministic_algorithms_enabled()
    return ResizeByProducts() if needs_products else nullcontext()


class ResizeByProducts(TorchFunctionMode):
    """A context in which torch's `interpolate` and `adaptive_avg_pool2d` are computed by `resize`."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[Any], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        if func is functional.interpolate and not options["antialias"] and options["mode"] in ("bilinear", "area"):
            return _interpolate(args[0], **options)
        if func is functional.adaptive_avg_pool2d:
            return _pool(*args, **options)
        return func(*args, **options)


def resize(images: torch.Tensor, size: tuple[int, int], scales: tuple[float, float], kind: Kind) -> torch.Tensor:
    """Return images at another size; the result differs from that of torch only by rounding.

    Args:
        images: in any memory format; channels last is kept.
        size: height and width of the result.
        scales: size of a pixel of the result, down and across, in pixels of the input; used only for `bilinear`.
        kind: how a pixel of the result is computed.

    Shape:
        (B, C, H, W) to (B, C, *size).
    """
    height, width = images.shape[-2:]
    if kind == "bilinear" and scales == (2.0, 2.0) and (height, width) == (2 * size[0], 2 * size[1]):
        return functional.avg_pool2d(images, 2)  # the same result, and faster for a single channel
    down = _matrix(height, size[0], scales[0], kind, images.dtype, images.device)
    across = _matrix(width, size[1], scales[1], kind, images.dtype, images.device)
    dtype = torch.promote_types(down.dtype, across.dtype)
    down, across, values = down.to(dtype), across.to(dtype), images.to(dtype)
    with torch.autocast(images.device.type, enabled=False):
        if images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous():
            pixels = values.permute(0, 2, 3, 1)  # (B, H, W, C), contiguous
            rows = (down @ pixels.flatten(2)).reshape(len(images), size[0], *pixels.shape[2:])
            return (across @ rows).permute(0, 3, 1, 2).to(images.dtype)
        return (down @ (values @ across.T)).to(images.dtype)


def _interpolate(
    images: torch.Tensor,
    *,
    size: Any,
    scale_factor: Any,
    mode: str,
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
    if mode == "area":
        return _pool(images, (height, width))
    return resize(images, (height, width), scales, "align_corners" if align_corners else "bilinear")


def _pool(images: torch.Tensor, output_size: Any) -> torch.Tensor:
    """Pool with the arguments of `torch.nn.functional.adaptive_avg_pool2d`."""
    wanted = output_size if isinstance(output_size, Sequence) else (output_size, output_size)
    height, width = (own if side is None else side for own, side in zip(images.shape[-2:], wanted, strict=True))
    if (height, width) == (1, 1):
        return functional.adaptive_avg_pool2d(images, 1)  # torch computes this as a mean, which is deterministic
    return resize(images, (height, width), (1, 1), "mean")


def _matrix(
    before: int, after: int, scale: float, kind: Kind, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Return the weights of the input pixels along one axis, (after, before).

    They are cached, because copying them to a GPU makes it wait. They have the type `dtype` if it represents them
    exactly, else float32: rounded weights would not add up to 1 and would change the brightness.
    """
    key = (before, after, scale, kind, dtype, device)
    if key not in _matrices:
        with torch.inference_mode(False):  # tensors made in inference mode cannot be used in training later
            weights = _mean_weights(before, after) if kind == "mean" else _bilinear_weights(before, after, scale, kind)
            is_exact = (kind == "bilinear" and scale in _EXACT_SCALES) or dtype == torch.float64
            _matrices[key] = weights.to(device, dtype if is_exact else torch.float32)
    return _matrices[key]


def _bilinear_weights(before: int, after: int, scale: float, kind: Kind) -> torch.Tensor:
    """Return bilinear weights, float32 (after, before), as torch computes them in aten/src/ATen/native/UpSample.h."""
    pixels = torch.arange(after, dtype=torch.float32)
    if kind == "align_corners":
        source = pixels * ((before - 1) / max(after - 1, 1))
    else:
        source = (scale * (pixels + 0.5) - 0.5).clamp(min=0)
    first = source.floor().long().clamp(max=before - 1)
    beyond = source - first
    weights = torch.zeros(after, before)
    weights[torch.arange(after), first] += 1 - beyond
    weights[torch.arange(after), (first + 1).clamp(max=before - 1)] += beyond
    return weights


def _mean_weights(before: int, after: int) -> torch.Tensor:
    """Return the weights of means, float32 (after, before), over the bins of aten/src/ATen/native/AdaptivePooling.h."""
    numbers = torch.arange(after)
    first, end = numbers * before // after, ((numbers + 1) * before + after - 1) // after
    pixels = torch.arange(before)
    covered = (pixels >= first[:, None]) & (pixels < end[:, None])
    return covered / covered.sum(1, keepdim=True)
