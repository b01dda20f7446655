"""Several frames become one: merged features, panels, a 3D encoder; 2D weights carry over."""

from typing import Any

import pytest
import torch
from test_build import built, recipe, step

from contrails.models.build import build_model
from contrails.models.segmenter import Segmenter
from contrails.models.sizes import panel_grid
from contrails.models.temporal import as_panels, panel_offset
from contrails.models.weights import load_fitting


def framed(num_frames: int = 4, label: int = 2, data: dict[str, Any] | None = None, **model: Any) -> Segmenter:
    torch.manual_seed(0)
    return build_model(recipe({"frames": list(range(num_frames))} | (data or {}), **model), 3, label)


def frames(num_frames: int = 4) -> torch.Tensor:
    return torch.rand(2, num_frames, 3, 50, 50, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("merge", ["conv3d", "gru", "lstm", "panels", "volume"])
@pytest.mark.parametrize("num_frames", [2, 5])
def test_frames_become_one_mask(merge: str, num_frames: int) -> None:
    encoder: dict[str, Any] = {"encoder": "cnn3d"} if merge == "volume" else {}
    model = framed(num_frames, num_frames - 1, temporal={"merge": merge}, **encoder)
    assert step(model, frames(num_frames)).mask.shape == (2, 50, 50)


def test_a_level_without_channels_is_left_alone() -> None:
    model = framed(3, 1, temporal={"merge": "conv3d"}, encoder="tu-test_convnext", encoder_depth=5, decoder_channels=())
    assert step(model, frames(3)).mask.shape == (2, 50, 50)


@pytest.mark.parametrize("merge", ["conv3d", "gru", "lstm", "panels", "volume"])
def test_every_frame_counts(merge: str) -> None:
    encoder: dict[str, Any] = {"encoder": "cnn3d"} if merge == "volume" else {}
    model = framed(temporal={"merge": merge, "own": False}, **encoder).eval()
    inputs = frames()
    for frame in range(4):
        changed = inputs.clone()
        changed[:, frame] += 1
        assert not torch.equal(model(changed).mask, model(inputs).mask)


@pytest.mark.parametrize("merge", ["conv3d", "gru"])
@pytest.mark.parametrize("label", [0, 3])
def test_with_its_own_feature_beside_it_starts_as_the_model_of_one_frame(merge: str, label: int) -> None:
    flat = built().eval()
    deep = framed(label=label, temporal={"merge": merge}).eval()
    fitting = load_fitting(deep, flat.state_dict())
    assert set(fitting.loaded) == set(flat.state_dict())
    assert (fitting.differing, fitting.unused) == ([], [])
    assert {name.partition("merge.")[0] for name in fitting.new} == {"model."}
    assert torch.allclose(deep(frames()).mask, flat(frames()[:, label]).mask, atol=1e-5)


def test_levels_and_layers_are_as_asked() -> None:
    model = framed(temporal={"merge": "conv3d", "levels": [2, 3], "layers": 3, "own": False})
    kernels = {
        name.split(".")[3]: [tuple(layer.kernel_size) for layer in merge if isinstance(layer, torch.nn.Conv3d)]
        for name, merge in model.named_modules()
        if name.startswith("model.merge.merges.") and name.count(".") == 3
    }
    assert kernels == {level: [(3, 3, 3), (3, 3, 3), (4, 3, 3)] for level in ("2", "3")}
    inputs, changed = frames(), frames()
    changed[:, 0] += 1
    network = model.eval().model
    first, second = (network._encoded(torch.nn.functional.pad(x, (0, 6, 0, 6)))[0] for x in (inputs, changed))
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [True, True, False, False]


@pytest.mark.parametrize(("count", "grid"), [(2, (1, 2)), (3, (1, 3)), (4, (2, 2)), (7, (1, 7)), (8, (2, 4))])
def test_panels(count: int, grid: tuple[int, int]) -> None:
    assert panel_grid(count) == grid
    images = torch.rand(2, count, 3, 4, 5)
    picture = as_panels(images)
    assert picture.shape == (2, 3, 4 * grid[0], 5 * grid[1])
    for panel in range(count):
        top, left = panel_offset(panel, images)
        assert torch.equal(picture[..., top : top + 4, left : left + 5], images[:, panel])


def test_panels_are_enlarged_one_by_one() -> None:
    model = framed(data={"size": 64}, temporal={"merge": "panels"}).eval()
    seen: list[torch.Size] = []
    model.model.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape))
    assert model(frames()).mask.shape == (2, 50, 50)
    assert seen == [torch.Size([2, 3, 128, 128])]
