"""Sizes of records that networks take: what the table says is what they do, and the rest is refused before a job."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from contrails.cli.main import cli
from contrails.errors import RecipeError
from contrails.models.build import build_model
from contrails.models.names import require_useful
from contrails.models.sizes import padded, require_piece, require_size
from contrails.recipe.recipe import Recipe


def recipe(model: dict[str, Any], **tables: Any) -> Recipe:
    data = {"dataset": "d", "filelist": "f"} | tables.pop("data", {})
    return Recipe.model_validate({"data": data, "model": model, **tables})


def test_torch_is_not_needed() -> None:
    code = "import sys; import contrails.models.sizes; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("model", "tables", "side", "message"),
    [
        (
            {"architecture": "PAN"},
            {},
            96,
            (
                "'PAN' with model.encoder = 'resnet18': expected images of at least 128 pixels per side, "
                "found 96 x 96; set data.size = 128, or choose another architecture"
            ),
        ),
        ({"architecture": "PAN", "decoder_options": {"encoder_output_stride": 32}}, {}, 200, "at least 256 pixels"),
        ({"architecture": "PAN"}, {"data": {"crop": 64}}, 256, "at least 128 pixels per side, found 64 x 64"),
        (
            {"architecture": "DeepLabV3Plus"},
            {"train": {"accumulate": 16}},
            256,
            (
                "at least 2 records in a piece, found "
                "train.batch_size = 16 with train.accumulate = 16; change one of these, or set model.norm = 'group'"
            ),
        ),
        (
            {"encoder": "tu-efficientformer_l1"},
            {"data": {"size": 256}},
            256,
            ("expected images of 224 x 224 pixels, found 256 x 256; set data.size = 224, or choose another encoder"),
        ),
        (
            {"encoder": "tu-maxvit_tiny_tf_512", "encoder_options": {"img_size": 256}},
            {},
            128,
            ("256 x 256 pixels, found 128 x 128; leave model.encoder_options.img_size out"),
        ),
    ],
)
def test_what_a_network_does_not_take_is_refused(
    model: dict[str, Any], tables: dict[str, Any], side: int, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        require_size(recipe(model, **tables), side, side)


@pytest.mark.parametrize(
    ("model", "side"),
    [
        ({"architecture": "PAN"}, 128),
        ({"architecture": "PAN", "encoder_depth": 3}, 64),
        ({"architecture": "UPerNet"}, 32),
    ],
)
def test_the_smallest_size_trains_and_a_smaller_one_does_not(model: dict[str, Any], side: int) -> None:
    asked = recipe(model)
    network = build_model(asked, 3)
    require_size(asked, side, side)
    assert network(torch.zeros(2, 3, side, side)).mask.shape == (2, side, side)
    smaller = side - 2**asked.model.encoder_depth
    if smaller:
        with pytest.raises(RecipeError, match="pixels per side"):
            require_size(asked, smaller, smaller)
        with pytest.raises(RuntimeError):
            network(torch.zeros(2, 3, smaller, smaller))


def test_what_is_padded_to_a_size_that_is_taken_is_not_refused() -> None:
    require_size(recipe({"architecture": "PAN"}, data={"size": 100}), 64, 64)
    panels = {"architecture": "PAN", "temporal": {"merge": "panels"}}
    require_size(recipe(panels, data={"frames": [1, 2, 3, 4]}), 64, 64)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_a_piece_of_one_record_is_refused_where_it_does_not_train(norm: str) -> None:
    asked = recipe({"architecture": "UPerNet", "norm": norm}, train={"batch_size": 2, "accumulate": 2})
    network = build_model(asked, 3).train()
    if norm == "group":
        require_size(asked, 64, 64)
        network(torch.zeros(1, 3, 64, 64))
        return
    with pytest.raises(RecipeError, match="at least 2 records in a piece"):
        require_size(asked, 64, 64)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        (
            {"architecture": "PSPNet", "encoder": "tu-efficientnet_lite0"},
            {},
            (
                "model.encoder = 'tu-efficientnet_lite0' has batch norm on one value per record of 32 x 32 pixels: "
                "expected at least 2 records in a piece, found train.batch_size = 2 with train.accumulate = 2; "
                "change one of these, or set model.encoder_norm = 'group'"
            ),
        ),
        ({"architecture": "MAnet", "encoder": "tu-convnext_atto"}, {}, "architecture = 'MAnet' .* set model.norm ="),
        ({"task": "classify"}, {}, "model.encoder = 'resnet18' has batch norm on one value per record of 32 x 32"),
        (
            {"encoder": "tu-resnest14d"},
            {"size": 256},
            "'tu-resnest14d' has batch norm on one value per record: expected",
        ),
        (
            {"encoder": "tu-convnext_atto", "temporal": {"merge": "conv3d"}},
            {"frames": [3, 4]},
            "model.temporal.merge = 'conv3d' has batch norm on one value per record of 32 x 32",
        ),
    ],
)
def test_batch_norm_on_one_value_is_refused(model: dict[str, Any], data: dict[str, Any], message: str) -> None:
    asked = recipe(model, data=data, train={"batch_size": 2, "accumulate": 2})
    with pytest.raises(RecipeError, match=message):
        require_size(asked, 32, 32)
    shape = (len(asked.data.frames), 3) if "temporal" in model else (3,)
    network = build_model(asked, 3).train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(torch.zeros(1, *shape, 32, 32))
    network(torch.zeros(2, *shape, 32, 32))
    require_size(recipe(model, data=data, train={"batch_size": 2}), 32, 32)
    of_groups = recipe(model | {"norm": "group", "encoder_norm": "group"}, data=data, train=asked.train.model_dump())
    require_size(of_groups, 32, 32)
    build_model(of_groups, 3).train()(torch.zeros(1, *shape, 32, 32))


@pytest.mark.parametrize(
    ("model", "data"),
    [
        ({"encoder": "tu-convnext_atto"}, {}),
        ({}, {"size": 64}),
        ({"encoder_depth": 4}, {}),
        ({"stem_stride": 1}, {}),
        ({"architecture": "MAnet", "encoder": "vgg11", "decoder_options": {"decoder_use_norm": "identity"}}, {}),
        ({"temporal": {"merge": "gru"}}, {"frames": [3, 4]}),
        ({"temporal": {"merge": "panels"}}, {"frames": [3, 4]}),
    ],
)
def test_one_record_that_trains_is_not_refused(model: dict[str, Any], data: dict[str, Any]) -> None:
    asked = recipe(model, data=data, train={"batch_size": 1})
    require_size(asked, 32, 32)
    shape = (len(asked.data.frames), 3) if "temporal" in model else (3,)
    assert build_model(asked, 3).train()(torch.zeros(1, *shape, 32, 32)).mask.shape == (1, 32, 32)


def test_windows_and_the_pieces_of_ranks_and_of_a_last_step_count() -> None:
    alone = {"train": {"batch_size": 1}}
    require_piece(recipe({}, **alone), 256, 256)
    with pytest.raises(
        RecipeError, match=r"model.encoder = 'resnet18' has batch norm on one value per record of 32 x 32"
    ):
        require_piece(recipe({}, data={"crop": 32}, **alone), 256, 256)
    asked = recipe({}, train={"batch_size": 4, "accumulate": 2})
    require_piece(asked, 32, 32)
    with pytest.raises(RecipeError, match=r"found train.batch_size = 4 with train.accumulate = 2 on 2 ranks; change"):
        require_piece(asked, 32, 32, num_ranks=2)
    require_piece(recipe({}, train={"batch_size": 4, "accumulate": 2, "sync_batch_norm": True}), 32, 32, num_ranks=2)
    with pytest.raises(RecipeError, match=r"and train.drop_last = true, which make a step of 3; change"):
        require_piece(asked, 32, 32, step=3)


@pytest.mark.parametrize("encoder", ["tu-swin_tiny_patch4_window7_224", "tu-vit_tiny_patch16_224"])
def test_an_encoder_of_one_size_is_built_for_what_it_sees(encoder: str) -> None:
    model = {"encoder": encoder} | ({"architecture": "DPT", "encoder_depth": 4} if "vit" in encoder else {})
    asked = recipe(model, data={"size": 50})
    require_size(asked, 40, 40)
    assert padded(asked.model, 50) == 64
    assert build_model(asked, 3).eval()(torch.zeros(1, 3, 40, 40)).mask.shape == (1, 40, 40)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"relu_features": "add"}, "'add': expected features without a ReLU, resnet18 has one; leave the key out"),
        ({"relu_features": "add", "encoder": "vgg11"}, "'add': expected features without a ReLU, vgg11 has one"),
        (
            {"relu_features": "remove", "encoder": "tu-convnext_atto"},
            "'remove': expected features that end with a ReLU, .* do not; leave",
        ),
    ],
)
def test_a_key_without_effect_is_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=f"model.relu_features = {message}"):
        require_useful(recipe(model))


def test_shared_statistics_need_batch_norm_and_no_compiler() -> None:
    train = {"sync_batch_norm": True}
    with pytest.raises(RecipeError, match=r"expected a model with batch norm, found model.norm = 'group' and model"):
        require_useful(recipe({"norm": "group", "encoder_norm": "group"}, train=train))
    require_useful(recipe({"norm": "group"}, train=train))
    with pytest.raises(ValueError, match="sync_batch_norm and compile exclude each other"):
        recipe({}, train=train | {"compile": True})


def test_a_key_with_effect_is_not_refused() -> None:
    require_useful(recipe({"relu_features": "remove"}))
    require_useful(recipe({"relu_features": "add", "encoder": "tu-convnext_atto"}))


def test_records_that_are_too_small_are_refused_at_submission(tiny_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "pan.toml"
    path.write_text(f'[data]\ndataset = "{tiny_data}/train.h5"\nfilelist = "{tiny_data}/three.csv"\n'
                    '[model]\narchitecture = "PAN"\n')  # fmt: skip
    with pytest.raises(RecipeError, match=r"'PAN' .* at least 128 pixels per side, found 32 x 32"):
        cli(["submit", str(path), "--dry-run", "--site", "local"], standalone_mode=False)
