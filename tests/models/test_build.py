"""Networks: every architecture, encoders of each kind, and options that do what they say."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from contrails.errors import DataError
from contrails.models.build import build_model
from contrails.models.names import known
from contrails.models.outputs import Outputs
from contrails.models.segmenter import Segmenter
from contrails.models.summary import summary
from contrails.models.weights import load_weights, save_weights
from contrails.recipe.recipe import Recipe

SMALL = {"encoder": "tu-test_resnet", "encoder_depth": 3, "decoder_channels": [16, 8, 8]}


def recipe(data: dict[str, Any] | None = None, **model: Any) -> Recipe:
    values = {"data": {"dataset": "d", "filelist": "f"} | (data or {}), "model": SMALL | model}
    return Recipe.model_validate(values)


def built(num_channels: int = 3, data: dict[str, Any] | None = None, **model: Any) -> Segmenter:
    torch.manual_seed(0)
    return build_model(recipe(data, **model), num_channels)


def step(model: Segmenter, inputs: torch.Tensor) -> Outputs:
    """Run a model forward and backward, and check that every weight that counts got a gradient."""
    outputs: Outputs = model.train()(inputs)
    heads = [
        outputs.mask,
        *outputs.heads,
        *outputs.aux,
        *(o for o in (outputs.classes, outputs.share) if o is not None),
    ]
    torch.stack([head.square().mean() for head in heads]).sum().backward()  # type: ignore[no-untyped-call]
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    # the last block of a Unet has no skip connection to attend to
    assert not [name for name in without if "encoder" not in name and "blocks.2.attention1" not in name], without
    assert all(torch.isfinite(head).all() for head in heads)
    return outputs


@pytest.mark.parametrize(("data", "size"), [({}, 64), ({}, 50), ({"size": 96}, 64), ({"size": 40}, 33)])
def test_output_has_the_size_of_the_label(data: dict[str, Any], size: int) -> None:
    assert built(data=data).eval()(torch.zeros(2, 3, size, size)).mask.shape == (2, size, size)


@pytest.mark.parametrize("architecture", known()["architectures"])
def test_every_architecture_runs_forward_and_backward(architecture: str) -> None:
    model: dict[str, Any] = {"encoder": "resnet18", "encoder_depth": 5, "decoder_channels": []}
    if architecture == "DPT":
        model = {"encoder": "tu-test_vit", "encoder_depth": 4, "encoder_options": {"dynamic_img_size": True},
                 "decoder_options": {"decoder_fusion_channels": 32, "decoder_intermediate_channels": [32, 32, 32, 32]},
                 "decoder_channels": []}  # fmt: skip
    side = 128 if architecture == "PAN" else 64  # it pools the coarsest feature three times
    outputs = step(built(5, architecture=architecture, **model), torch.rand(2, 5, side, side))
    assert outputs.mask.shape == (2, side, side)
    assert outputs == (outputs.mask, None, None, (), ())


@pytest.mark.parametrize(
    "encoder",
    ["mit_b0", "tu-test_convnext", "tu-convnextv2_atto", "tu-test_mambaout", "tu-tresnet_m", "tu-dla46_c", "tu-vgg11",
     "tu-efficientnet_b0", "tu-resnest14d", "tu-hrnet_w18_small"],
)  # fmt: skip
def test_encoders(encoder: str) -> None:
    model = built(1, encoder=encoder, encoder_depth=5, decoder_channels=[8] * 5)
    assert step(model, torch.rand(2, 1, 64, 64)).mask.shape == (2, 64, 64)


def test_an_encoder_of_a_fixed_size_is_built_for_the_size_of_the_input() -> None:
    window = built(
        data={"size": 64}, encoder="tu-swin_tiny_patch4_window7_224", encoder_depth=5, decoder_channels=[8] * 5
    )
    assert window.eval()(torch.zeros(1, 3, 40, 40)).mask.shape == (1, 40, 40)


def test_summary_names_shapes() -> None:
    for model in (
        built(),
        built(encoder="tu-maxvit_tiny_tf_512", data={"size": 64}, encoder_depth=5, decoder_channels=()),
    ):
        table = summary(model, (2, 3, 64, 64))
        assert max(map(len, table.splitlines())) <= 80
        assert f"\nparameters: {sum(p.numel() for p in model.parameters()):,}" in table
    assert re.search(r"\n    encoder: MaxxVit|\n    encoder: \w+Encoder +2, 3, 64, 64", table)


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(4.0), "a": torch.ones(2, 3).t()}
    for name in ("one", "two"):
        save_weights(tmp_path / name, dict(sorted(tensors.items(), reverse=name == "two")), {"epoch": 1, "dice": 0.5})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    loaded, about = load_weights(tmp_path / "one")
    assert torch.equal(loaded["a"], tensors["a"])
    assert about == {"epoch": 1, "dice": 0.5}


def test_layers_that_share_their_weights_are_saved_under_each_name(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    tensors = {"a": shared, "b": shared, "transposed": shared.t(), "other": torch.ones(2)}
    save_weights(tmp_path / "w", tensors, {})
    loaded, _ = load_weights(tmp_path / "w")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_damaged_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="expected a complete safetensors file"):
        load_weights(path)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(DataError, match="contrails did not write the file"):
        load_weights(path)
