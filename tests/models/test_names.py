"""What a login node knows of models: names, options and combinations are refused with what would work."""

import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest
from pydantic import ValidationError

from contrails.errors import RecipeError
from contrails.models.library import smp, timm
from contrails.models.names import decoder_channels, find_encoder, known, require_known
from contrails.recipe.recipe import Recipe


def recipe(model: dict[str, Any], **tables: Any) -> Recipe:
    data = {"dataset": "d", "filelist": "f"} | tables.pop("data", {})
    return Recipe.model_validate({"data": data, "model": model, **tables})


def test_the_table_is_that_of_the_tested_versions() -> None:
    again = "run scripts/model_names.py"
    assert known()["versions"] == {name: version(name) for name in ("segmentation_models_pytorch", "timm")}, again
    assert list(known()["encoders"]) == [name for name in smp.encoders.get_encoder_names() if name != "cnn3d"], again
    assert set(known()["timm"]) | set(known()["without_features"]) == set(timm.list_models()), again
    assert {name for name in vars(smp) if name in known()["architectures"]} == set(known()["architectures"]), again


def test_every_encoder_was_run() -> None:
    measured = {"smallest_px", "relu", "not_with", "alone_px"}
    assert [name for name, entry in known()["encoders"].items() if not measured <= set(entry)] == []
    of_timm = measured | {"only_px", "patch_px"}
    assert [name for name, entry in known()["timm"].items() if not of_timm <= set(entry)] == []
    assert all(entry["coarsest_px"] >= 1 and entry["alone_px"] for entry in known()["architectures"].values())


def test_torch_is_not_needed() -> None:
    code = "import sys; import contrails.models.names; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"architecture": "Unett"}, r"model.architecture = 'Unett': did you mean 'Unet'"),
        ({"encoder": "resnet81"}, r"model.encoder = 'resnet81': did you mean 'resnet18' or .{,40}\? \(an encoder"),
        ({"encoder": "???"}, r"'\?\?\?': expected one of \d+ names, such as .* or tu-NAME for a timm model"),
        ({"encoder": "tu-resnet81"}, r"model.encoder = 'tu-resnet81': did you mean 'tu-resnet18'"),
        ({"encoder": "tu-"}, r"model.encoder = 'tu-': "),
        ({"encoder": "tu-xcit_nano_12_p16_224"}, r"offers no features .*; similar encoders: tu-davit_tiny"),
        ({"encoder": "tu-resnet18.a9_in1k"}, r"resnet18 has no weights 'a9_in1k'; .*a1_in1k"),
        ({"encoder": "tu-vit_base_patch16_224"}, r"its features all have one size, so it works only with DPT"),
        ({"encoder": "tu-convnext_tiny", "encoder_options": {"drop_path": 0.1}},
         r"encoder_options.drop_path: tu-convnext_tiny has no such option; did you mean 'drop_path_rate'"),
        ({"encoder": "tu-convnext_tiny", "encoder_options": {"drop_path_rate": "much"}},
         r"model.encoder_options.drop_path_rate = 'much': expected a number \(tu-convnext_tiny\)"),
        ({"encoder_options": {"drop_path_rate": 0.1}}, r"resnet18 .*; it has no options; tu-resnet18 has"),
        ({"decoder_options": {"attention": "scse"}}, r"decoder_options.attention: Unet has no such option; .*Known"),
        ({"decoder_options": {"decoder_attention_type": "se"}}, r"decoder_attention_type = 'se': did you mean 'scse'"),
        ({"architecture": "FPN", "decoder_options": {"decoder_dropout": True}}, r"= True: expected a num"),
        ({"decoder_channels": [8, 8]}, r"decoder_channels: expected one per stage \(encoder_depth = 5\)"),
        ({"architecture": "FPN", "decoder_channels": [8]}, r"FPN has no such option; .*decoder_pyramid_channels"),
        ({"architecture": "DeepLabV3Plus", "decoder_channels": [8, 8]}, r"expected a single one .*, found 2"),
        ({"architecture": "DeepLabV3", "encoder": "vgg11"}, r"its stride cannot be lowered; choose one like resnet34"),
        ({"architecture": "Linknet", "encoder": "mit_b0"}, r"smp does not support this combination; choose"),
        ({"architecture": "PSPNet", "encoder": "tu-rexnet_100"}, r"smp does not support this combination; choose"),
        ({"architecture": "DPT", "encoder": "tu-tresnet_m", "encoder_depth": 4}, r"features have several sizes"),
        ({"architecture": "FPN", "encoder": "tu-convnext_tiny", "encoder_depth": 4}, r"needs encoder_depth = 5"),
        ({"architecture": "DPT"}, r"DPT needs a timm encoder and encoder_depth = 4"),
        ({"architecture": "FPN", "skip_dropout": 0.1}, r"model.skip_dropout: expected .*Unet.*; found .* = 'FPN'"),
        ({"architecture": "Linknet", "deep_supervision": 1}, r"supervision: expected MAnet, Unet, UnetPlusPlus; f"),
        ({"decoder_channels": [32, 16, 16, 8, 8], "decoder_options": {"decoder_attention_type": "scse"}},
         r"scse needs at least 16 at every stage"),
        ({"architecture": "FPN", "encoder_depth": 3, "stem_stride": 1}, r"needs encoder_depth = 4 or 5"),
        ({"align_corners": True}, r"model.align_corners: expected a Unet with .* 'bilinear'"),
        ({"stem_stride": 1, "encoder": "tu-convnext_tiny"}, r"those of tu-convnext_tiny begin at 4"),
        ({"stem_stride": 1, "encoder": "mobileone_s0"},
         r"model.stem_stride = 1: the features of mobileone_s0 would not be .*; leave the key out, or"),
        ({"stem_stride": 1, "encoder": "tu-repvgg_a0", "task": "classify"}, r"the features of tu-repvgg_a0 would"),
        ({"stem_stride": 1, "encoder": "vgg11"}, r"stem_stride = 1: the features of vgg11"),
        ({"stem_stride": 1, "encoder": "tu-dla34"}, r"stem_stride = 1: the features of tu-dla34"),
        ({"stem_stride": 1, "encoder": "cnn3d", "temporal": {"merge": "volume"}}, r"stem_stride = 1: .* of cnn3d"),
        ({"decoder_options": {"decoder_use_norm": "instancenorm"}}, r"decoder_use_norm = 'instancenorm': .*identity"),
        ({"encoder": "tu-maxvit_tiny_tf_512"}, r"is built for one image size; set data.size"),
        ({"pretrained": "imagenet1"}, r"model.pretrained = 'imagenet1': .* resnet18: did you mean 'imagenet'"),
        ({"pretrained": "default", "encoder": "cnn3d", "temporal": {"merge": "volume"}}, r"of cnn3d: it has none"),
        ({"encoder_norm": "frozen"}, r"model.encoder_norm = 'frozen' needs pretrained weights"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(model: dict[str, Any], message: str) -> None:
    frames = {"frames": [3, 4]} if "temporal" in model else {}
    with pytest.raises(RecipeError, match=message):
        require_known(recipe(model, data=frames))


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({"temporal": {"merge": "conv3d"}}, {}, r"merge = 'conv3d' needs several frames, found data.frames = \[\]"),
        ({"temporal": {"merge": "panels"}}, {"frames": [4]}, r"found data.frames = \[4\]"),
        ({"temporal": {"levels": [1]}}, {"frames": [3, 4]}, r"levels = \[1\] needs merge = 'conv3d'"),
        ({"temporal": {"merge": "gru", "levels": [6]}}, {"frames": [3, 4]}, r"at most encoder_depth = 5"),
        (
            {"temporal": {"merge": "gru", "levels": [2, 2]}},
            {"frames": [3, 4]},
            r"expected different numbers from 1 on",
        ),
        ({"encoder": "cnn3d"}, {}, r"encoder = 'cnn3d' and temporal.merge = 'volume' need each other"),
        ({"task": "classify", "heads": 2}, {}, r"task = 'classify' has no mask"),
        ({"deep_supervision": 3, "encoder_depth": 3}, {}, r"expected less than encoder_depth = 3"),
    ],
)
def test_what_contradicts_itself_is_refused_when_it_is_read(
    model: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(model, data=data)


@pytest.mark.parametrize(
    "model",
    [
        {"encoder": "tu-convnext_tiny", "encoder_options": {"drop_path_rate": 0.1}},
        {"encoder": "tu-resnest26d", "pretrained": "default"},
        {"encoder": "tu-coat_lite_small", "encoder_options": {"img_size": [512, 512]}},
        {"encoder": "tu-resnet18.a1_in1k", "pretrained": "a1_in1k"},
        {"encoder": "resnet34", "pretrained": "weights/mine.safetensors"},
        {"architecture": "unet", "decoder_options": {"decoder_attention_type": "scse"}},
        {
            "architecture": "DPT",
            "encoder": "tu-vit_base_patch16_224",
            "encoder_depth": 4,
            "encoder_options": {"dynamic_img_size": True},
        },
        {"architecture": "PAN", "encoder": "vgg11", "decoder_options": {"encoder_output_stride": 32}},
        {"encoder": "tu-tf_efficientnet_b2", "stem_stride": 1},
    ],
)
def test_what_works_is_let_through(model: dict[str, Any]) -> None:
    require_known(recipe(model))


def test_channels_of_decoders() -> None:
    assert decoder_channels(recipe({}).model) == (256, 128, 64, 32, 16)
    assert decoder_channels(recipe({"encoder_depth": 3}).model) == (256, 128, 64)
    assert decoder_channels(recipe({"architecture": "UPerNet", "decoder_channels": [32]}).model) == 32
    assert decoder_channels(recipe({"architecture": "FPN"}).model) is None


def test_encoders_with_features() -> None:
    assert not [name for name in ("resnest26d", "convnextv2_tiny", "maxvit_tiny_tf_512") if name not in known()["timm"]]
    assert find_encoder("tu-resnest26d").pretrained[0] == "gluon_in1k"
    assert known()["without_features"]
