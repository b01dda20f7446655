from pathlib import Path
from typing import Any

import pytest
import torch

from contrails.config import Recipe
from contrails.errors import DataError, RecipeError
from contrails.models.build import build_model, smp_names, summary
from contrails.models.names import known_names
from contrails.models.weights import load_weights, save_weights


def recipe(data: dict[str, Any] | None = None, **model: Any) -> Recipe:
    small = {"encoder": "resnet18", "encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    return Recipe.model_validate({"data": {"dataset": "d", "filelist": "f"} | (data or {}), "model": small | model})


@pytest.mark.parametrize(("data", "size"), [({}, 64), ({}, 50), ({"size": 96}, 64), ({"size": 40}, 33)])
def test_output_has_the_size_of_the_label(data: dict[str, Any], size: int) -> None:
    model = build_model(recipe(data), num_channels=3).eval()
    assert model(torch.zeros(2, 3, size, size)).shape == (2, size, size)


@pytest.mark.parametrize("architecture", ["Unet", "FPN", "DeepLabV3Plus"])
def test_architectures_of_smp(architecture: str) -> None:
    model = build_model(recipe(architecture=architecture, encoder_depth=4, decoder_channels=[8] * 4), num_channels=2)
    assert model.eval()(torch.zeros(1, 2, 64, 64)).shape == (1, 64, 64)


def test_timm_encoder() -> None:
    model = build_model(recipe(encoder="tu-test_resnet"), num_channels=1)
    assert model.eval()(torch.zeros(1, 1, 64, 64)).shape == (1, 64, 64)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"architecture": "Unett"}, r"model.architecture = 'Unett': did you mean 'Unet'"),
        ({"encoder": "resnet81"}, r"model.encoder = 'resnet81': did you mean 'resnet18' or .{,40}\? \(an encoder"),
        ({"encoder": "???"}, r"'\?\?\?': expected one of \d+ names, such as .* or tu-NAME for a timm model"),
        ({"encoder": "tu-"}, r"model.encoder = 'tu-': expected one of"),
        ({"encoder": "tu-nothing"}, r"'tu-nothing' cannot be built"),
    ],
)
def test_unknown_names_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build_model(recipe(**model), num_channels=3)


def test_the_names_that_a_login_node_knows_are_those_of_smp() -> None:
    assert known_names() == smp_names(), "run scripts/model_names.py"


def test_summary_names_shapes() -> None:
    assert "Total params" in summary(build_model(recipe(), num_channels=3), (2, 3, 64, 64))


def test_equal_weights_are_equal_files(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(4.0), "a": torch.ones(2, 3).t()}
    for name in ("one", "two"):
        save_weights(tmp_path / name, dict(sorted(tensors.items(), reverse=name == "two")), {"epoch": 1, "dice": 0.5})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    loaded, about = load_weights(tmp_path / "one")
    assert torch.equal(loaded["a"], tensors["a"])
    assert about == {"epoch": 1, "dice": 0.5}


def test_damaged_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match="not a complete safetensors file"):
        load_weights(path)
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(DataError, match="was not written by contrails"):
        load_weights(path)
