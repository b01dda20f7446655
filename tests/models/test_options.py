"""Each option of a model does what it says, and nothing where it is neutral."""

import copy
from typing import Any

import pytest
import torch
from test_build import SMALL, built, step
from torch import nn

from contrails.errors import RecipeError
from contrails.models.build import build_model
from contrails.models.names import find_encoder
from contrails.models.network import _both
from contrails.models.segmenter import Segmenter
from contrails.recipe.recipe import Recipe
from contrails.train.optim import freeze


def count(model: Segmenter, kind: type[nn.Module], below: str = "") -> int:
    return sum(isinstance(module, kind) for name, module in model.named_modules() if name.startswith(f"model.{below}"))


def mask(model: Segmenter) -> torch.Tensor:
    torch.manual_seed(1)
    found: torch.Tensor = model(torch.rand(2, 3, 64, 64)).mask
    return found


@pytest.mark.parametrize(
    "neutral",
    [{"logits": 1, "heads": 1, "head_channels": 0}, {"skip_dropout": 0.0, "head_dropout": 0.0, "norm": "batch"},
     {"decoder_options": {"decoder_interpolation": "nearest"}}, {"relu_features": "add"}, {"stem_stride": 2},
     {"classifier": True, "share": True, "deep_supervision": 2}],
)  # fmt: skip
def test_what_is_neutral_changes_nothing(neutral: dict[str, Any]) -> None:
    """The features of a ResNet have passed a ReLU already; other heads leave the mask alone."""
    assert torch.equal(mask(built(**neutral).eval()), mask(built().eval()))


@pytest.mark.parametrize(
    "option",
    [{"decoder_options": {"decoder_attention_type": "scse"}, "decoder_channels": [16] * 3},
     {"head_channels": 4}, {"logits": 2}, {"heads": 2},
     {"stem_stride": 1}, {"activation": "gelu"}, {"norm": "group"}, {"encoder_norm": "group"},
     {"decoder_options": {"decoder_interpolation": "bilinear"}},
     {"decoder_options": {"decoder_interpolation": "bilinear"}, "align_corners": True},
     {"encoder": "tu-test_convnext", "encoder_options": {"drop_path_rate": 0.5}, "relu_features": "add"},
     {"relu_features": "remove"}],
)  # fmt: skip
def test_options_train(option: dict[str, Any]) -> None:
    model = built(**option)
    assert not torch.equal(mask(model.eval()), mask(built().eval()))
    step(model, torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize("encoder", ["resnet18", "resnet50", "tu-test_resnet", "tu-regnetx_002", "tu-hrnet_w18_small"])
def test_a_decoder_can_get_features_before_their_relu(encoder: str) -> None:
    model = built(encoder=encoder, relu_features="remove").eval()
    plain = built(encoder=encoder).eval()
    plain.load_state_dict(model.state_dict())
    inputs = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for network in (model.model, copy.deepcopy(model).model):
            features, expected = network._encoded(inputs)[0], plain.model._encoded(inputs)[0]
            assert torch.equal(features[0], expected[0])
            assert all(torch.equal(one.relu(), other) for one, other in zip(features[1:], expected[1:], strict=True))
            assert any((feature < 0).any() for feature in features[1:])  # blocks begin as the identity


def test_upsampling_with_aligned_corners_differs_from_without() -> None:
    bilinear: dict[str, Any] = {"decoder_options": {"decoder_interpolation": "bilinear"}}
    first, second, plain = (mask(built(**bilinear, align_corners=a).eval()) for a in (True, False, None))
    assert not torch.equal(first, second)
    assert torch.equal(second, plain)


def test_norms_and_activations_are_where_they_should_be() -> None:
    batch = nn.BatchNorm2d
    model = built(norm="group", activation="silu", head_channels=4)
    assert (count(model, batch, "decoder"), count(model, batch, "segmentation_head")) == (0, 0)
    assert count(model, nn.GroupNorm, "decoder") == count(built(), batch, "decoder")
    assert (count(model, nn.ReLU, "decoder"), count(model, nn.SiLU, "decoder") > 0) == (0, True)
    assert count(model, batch, "encoder") == count(built(), batch, "encoder") > 0
    other = built(encoder_norm="group", encoder="tu-test_efficientnet")
    assert (count(other, batch, "encoder"), count(other, nn.GroupNorm, "encoder") > 0) == (0, True)


def test_frozen_batch_norm_does_not_learn_and_keeps_its_statistics() -> None:
    from test_build import recipe

    from contrails.models.build import build_model
    from contrails.recipe.recipe import Recipe

    values = recipe(encoder_norm="frozen").model_dump() | {"init": {"run": "another"}}
    model = build_model(Recipe.model_validate(values), 3)
    before = {name: tensor.clone() for name, tensor in model.model.encoder.state_dict().items() if "bn" in name}
    step(model, torch.rand(2, 3, 64, 64))
    assert before
    assert not [name for name, _ in model.model.encoder.named_parameters() if "bn" in name]
    assert all(torch.equal(tensor, model.model.encoder.state_dict()[name]) for name, tensor in before.items())


def test_a_stem_without_stride_sees_finer() -> None:
    inputs = torch.rand(1, 3, 64, 64)
    fine, coarse = (built(stem_stride=stride).eval().model.encoder(inputs)[-1].shape[-1] for stride in (1, 2))
    assert (fine, coarse) == (16, 8)


@pytest.mark.parametrize(
    "encoder", ["resnet34", "tu-tf_efficientnetv2_b0", "tu-resnest14d", "mobileone_s0", "tu-dla34"]
)
def test_a_stem_without_stride_doubles_the_features_of_what_is_let_through(encoder: str) -> None:
    model: dict[str, Any] = {"encoder": encoder, "stem_stride": 1}
    if not find_encoder(encoder).stem:
        with pytest.raises(RecipeError, match=f"model.stem_stride = 1: the features of {encoder}"):
            built(**model)
        return
    features = built(**model).eval().model.encoder(torch.rand(1, 3, 64, 64))
    assert [feature.shape[-1] for feature in features] == [64, 64, 32, 16]


@pytest.mark.parametrize("architecture", ["UnetPlusPlus", "MAnet", "Linknet", "FPN"])
def test_a_stem_without_stride_fits_other_decoders(architecture: str) -> None:
    channels: dict[str, Any] = {"decoder_channels": []} if architecture in ("Linknet", "FPN") else {}
    channels |= {"encoder_depth": 4} if architecture == "FPN" else {}
    assert (
        step(built(architecture=architecture, stem_stride=1, **channels), torch.rand(2, 3, 64, 64)).mask.shape[-1] == 64
    )


@pytest.mark.parametrize("architecture", ["Unet", "UnetPlusPlus", "MAnet"])
def test_dropout_is_random_in_training_alone(architecture: str) -> None:
    options: list[dict[str, Any]] = [{"skip_dropout": 0.5}, {"head_dropout": 0.5}]
    for option in options:
        model = built(architecture=architecture, encoder_norm="group", norm="group", **option)
        assert torch.equal(mask(model.eval()), mask(model.eval()))
        inputs = torch.rand(2, 3, 64, 64)
        assert not torch.equal(model.train()(inputs).mask, model.train()(inputs).mask)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("encoder.model.layr2", "did you mean 'encoder.model.layer"),
        ("merge", "expected one of [0-9]+ names, such as 'aux_heads'"),
    ],
)
def test_parts_that_are_not_there_cannot_be_frozen(part: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"train.freeze.{part}: the model has no such module; {message}"):
        freeze(built(), {part: 1}, 0)


def test_two_logits_are_a_softmax() -> None:
    model = built(logits=2).eval()
    inputs = torch.rand(2, 3, 64, 64)
    network = model.model
    both = network.segmentation_head(network.decoder(network.encoder(inputs)))
    assert torch.allclose(torch.sigmoid(model(inputs).mask), both.softmax(1)[:, 1], atol=1e-6)


def test_several_heads_and_deep_supervision() -> None:
    for architecture in ("Unet", "UnetPlusPlus", "MAnet"):
        model = built(architecture=architecture, heads=3, deep_supervision=2, classifier=True, share=True)
        outputs = step(model, torch.rand(2, 3, 50, 50))
        assert [tuple(each.shape) for each in outputs.heads] == [(2, 50, 50)] * 3
        assert [tuple(each.shape) for each in outputs.aux] == [(2, 50, 50)] * 2
        assert (outputs.classes is not None and outputs.classes.shape) == (2,)
        assert (outputs.share is not None and outputs.share.shape) == (2,)
        assert torch.allclose(outputs.mask, torch.stack(outputs.heads).mean(0))
        assert not torch.equal(outputs.heads[0], outputs.heads[1])
        assert model.eval()(torch.rand(2, 3, 50, 50)).aux == ()


def test_a_classifier_alone_has_no_decoder() -> None:
    model = built(task="classify")
    outputs = step(model, torch.rand(2, 3, 64, 64))
    assert outputs.classes is not None
    assert torch.equal(outputs.mask, outputs.classes[:, None, None].expand(2, 64, 64))
    assert not [name for name, _ in model.named_parameters() if "decoder" in name or "segmentation" in name]


def test_a_gate_multiplies_probabilities_outside_of_training() -> None:
    values = {"data": {"dataset": "d", "filelist": "f"}, "model": SMALL | {"classifier": True}, "loss": {"gate": True}}
    plain = built(classifier=True)
    gated = build_model(Recipe.model_validate(values), 3)
    gated.load_state_dict(plain.state_dict())
    inputs = torch.rand(2, 3, 64, 64)
    expected = plain.eval()(inputs)
    assert expected.classes is not None
    product = torch.sigmoid(expected.mask) * torch.sigmoid(expected.classes)[:, None, None]
    assert torch.allclose(torch.sigmoid(gated.eval()(inputs).mask), product, atol=1e-6)
    assert torch.equal(gated.train()(inputs).mask, plain.train()(inputs).mask)


def test_the_logit_of_a_product_holds_at_the_ends() -> None:
    logits = torch.tensor([-200.0, -80.0, -3.0, 0.0, 2.0, 12.0, 200.0])
    first, second = logits[:, None], logits[None]
    product = torch.sigmoid(first.double()) * torch.sigmoid(second.double())
    found = _both(first, second)
    assert torch.isfinite(found).all()
    assert torch.allclose(torch.sigmoid(found.double()), product, atol=1e-6)
    assert torch.allclose(found[1, 1:], torch.logit(product)[1, 1:].float(), rtol=1e-4)  # small ones stay apart


@pytest.mark.parametrize("option", [{}, {"logits": 2, "heads": 2}, {"head_channels": 4}, {"task": "classify"}])
def test_training_starts_at_the_rate_of_positives(option: dict[str, Any]) -> None:
    model = built(classifier=True, share=True, **option) if "task" not in option else built(**option)
    model.model.start_at(0.01, 0.4)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.zeros_(parameter)
    outputs = model.eval()(torch.rand(1, 3, 64, 64))
    assert torch.allclose(torch.sigmoid(outputs.classes), torch.tensor(0.4))
    if "task" not in option:
        assert torch.allclose(torch.sigmoid(outputs.mask), torch.tensor(0.01))
        assert torch.allclose(torch.sigmoid(outputs.share), torch.tensor(0.01))
