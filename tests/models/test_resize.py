"""Resizing by matrix products: the values and gradients of torch's own, for every way in which it is called."""

from typing import Any

import pytest
import torch
from conftest import MakeRecipe
from torch.nn import functional

from contrails.models import resize
from contrails.models.build import build_model
from contrails.models.resize import ResizeByProducts

WAYS: list[dict[str, Any]] = [
    {"size": (48, 40)},
    {"size": 7},
    {"size": (1, 1)},
    {"size": (16, 16)},
    {"size": (31, 66), "align_corners": True},
    {"size": (1, 5), "align_corners": True},
    {"scale_factor": 2.0},
    {"scale_factor": 0.5},
    {"scale_factor": (1.7, 0.6)},
    {"scale_factor": (1.7, 0.6), "recompute_scale_factor": True},
    {"scale_factor": 4, "align_corners": True},
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("channels", [1, 3])
def test_values_and_gradients_are_those_of_torch(
    way: dict[str, Any], layout: torch.memory_format, channels: int
) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, channels, 32, 33 if "size" in way else 32).contiguous(memory_format=layout)
    ours, theirs = (images.clone().requires_grad_() for _ in range(2))
    expected = functional.interpolate(theirs, mode="bilinear", **way)
    with ResizeByProducts():
        found = functional.interpolate(ours, mode="bilinear", **way)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=2e-6)
    change = torch.randn_like(expected)
    expected.backward(change)  # type: ignore[no-untyped-call]
    found.backward(change)  # type: ignore[no-untyped-call]
    assert torch.allclose(ours.grad, theirs.grad, atol=5e-6)  # type: ignore[arg-type]
    if layout == torch.channels_last and channels > 1:
        assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [1, 2, 3, (6, 5), (None, 4), 40])
def test_pooling_is_that_of_torch(size: Any, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    images = torch.randn(2, 3, 17, 16).contiguous(memory_format=layout)
    ours, theirs = (images.clone().requires_grad_() for _ in range(2))
    expected = functional.adaptive_avg_pool2d(theirs, size)
    with ResizeByProducts():
        found = functional.adaptive_avg_pool2d(ours, size)
        if None not in (size if isinstance(size, tuple) else [size]):
            assert torch.equal(functional.interpolate(ours, size, mode="area"), found)
    assert torch.allclose(found, expected, atol=2e-6)
    change = torch.randn_like(expected)
    expected.backward(change)  # type: ignore[no-untyped-call]
    found.backward(change)  # type: ignore[no-untyped-call]
    assert torch.allclose(ours.grad, theirs.grad, atol=2e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(64, 64), (48, 40), (16, 16)])
def test_half_precision_keeps_its_type_and_the_brightness(dtype: torch.dtype, size: tuple[int, int]) -> None:
    images = torch.full((1, 3, 32, 32), 3.0, dtype=dtype)
    with ResizeByProducts():
        found = functional.interpolate(images, size, mode="bilinear")
    assert found.dtype == dtype
    assert torch.equal(found, torch.full_like(found, 3.0))


def test_weights_that_prediction_made_can_train() -> None:
    resize._matrices.clear()
    images = torch.randn(1, 1, 5, 5)
    with torch.inference_mode(), ResizeByProducts():
        functional.interpolate(images, (9, 9), mode="bilinear")
    images.requires_grad_()
    with ResizeByProducts():
        functional.interpolate(images, (9, 9), mode="bilinear").sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None


def test_other_ways_to_resize_stay_those_of_torch() -> None:
    images = torch.randn(1, 2, 8, 8)
    for options in (
        {"mode": "nearest"},
        {"mode": "bicubic"},
        {"mode": "bilinear", "antialias": True},
    ):
        expected = functional.interpolate(images, (5, 5), **options)
        with ResizeByProducts():
            assert torch.equal(functional.interpolate(images, (5, 5), **options), expected)


@pytest.mark.parametrize("architecture", ["FPN", "PSPNet", "PAN", "DeepLabV3Plus", "UPerNet", "Segformer", "Unet"])
def test_the_layers_of_a_library_resize_alike(
    architecture: str, recipe_with: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[torch.Size] = []

    def counted(images: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(images.shape)
        return plain(images, *arguments, **options)

    plain = resize.resize
    monkeypatch.setattr(resize, "resize", counted)
    recipe = recipe_with(model={"architecture": architecture, "encoder": "resnet18"}, data={"size": 160})
    model = build_model(recipe, 3).eval()
    images = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        expected = model(images).mask
        with ResizeByProducts():
            found = model(images).mask
    assert len(calls) >= 2 + (architecture != "Unet")
    assert torch.allclose(found, expected, atol=1e-4)
