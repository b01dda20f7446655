"""Models on a GPU: resizing as on the CPU, and gradients that are the same every time."""

from typing import Any

import pytest
import torch
from conftest import MakeRecipe
from torch.nn import functional

from contrails.models.build import build_model
from contrails.models.resize import deterministic_resizing

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu", "restore_process")]

WAYS: list[dict[str, Any]] = [
    {"size": (48, 40)},
    {"size": (16, 16)},
    {"size": (31, 66), "align_corners": True},
    {"scale_factor": 2.0},
    {"scale_factor": (1.7, 0.6)},
]


def resized(images: torch.Tensor, change: torch.Tensor, way: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the resized images and the gradient of a change of them, both on the CPU."""
    images = images.clone().requires_grad_()
    with deterministic_resizing(images):
        found = functional.interpolate(images, mode="bilinear", **way)
    found.backward(change.to(images.device))  # type: ignore[no-untyped-call]
    assert images.grad is not None
    return found.detach().cpu(), images.grad.cpu()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_is_that_of_the_cpu_and_the_same_every_time(
    gpu: torch.device, way: dict[str, Any], layout: torch.memory_format, channels: int
) -> None:
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    images = torch.randn(2, channels, 32, 32).contiguous(memory_format=layout)
    change = torch.randn_like(functional.interpolate(images, mode="bilinear", **way))
    expected = resized(images, change, way)
    first, second = (resized(images.to(gpu), change, way) for _ in range(2))
    for on_cpu, on_gpu, again in zip(expected, first, second, strict=True):
        assert torch.allclose(on_gpu, on_cpu, atol=1e-5)
        assert torch.equal(on_gpu, again)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["Unet", "FPN", "PSPNet", "DeepLabV3Plus", "UPerNet", "Segformer"])
def test_gradients_are_the_same_every_time(
    gpu: torch.device, recipe_with: MakeRecipe, architecture: str, precision: torch.dtype | None
) -> None:
    torch.use_deterministic_algorithms(True)
    recipe = recipe_with(model={"architecture": architecture, "encoder": "resnet18"}, data={"size": 160})
    torch.manual_seed(0)
    model, images = build_model(recipe, 3).to(gpu).train(), torch.randn(2, 3, 128, 128).to(gpu)
    runs = []
    for _ in range(2):
        model.zero_grad()
        torch.manual_seed(1)  # for dropout
        with torch.autocast("cuda", precision, enabled=precision is not None):
            mask = model(images).mask
        mask.square().mean().backward()
        runs.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert len(runs[0]) > 10
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
