"""Composites: published formulas, expressions, normalisation as an affine map; what is not linear is refused."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contrails.errors import RecipeError
from contrails.inputs.composites import Channel, Composite, channels_of, check_composite, compose, parse_expression
from contrails.recipe.data import DataSection

BANDS = ("b11", "b14", "b15")


def section(composite: Any = "ash", normalise: str = "none") -> DataSection:
    return DataSection.model_validate(
        {"dataset": "d.h5", "filelist": "f.csv", "composite": composite, "normalise": normalise}
    )


@pytest.fixture(scope="module")
def kelvin() -> np.ndarray:
    """Kelvin (B, T, C, H, W) that packing keeps exactly: counts of 0.01."""
    counts = np.random.default_rng(0).integers(-5000, 4000, (2, 2, 3, 8, 8))
    return counts * 0.01 + 273.15


def composed(kelvin: np.ndarray, composite: Composite) -> np.ndarray:
    packed = torch.from_numpy(np.rint((kelvin - 273.15) / 0.01).astype(np.int16))
    return compose(packed, composite, BANDS, 0.01, 273.15).numpy()


def test_ash_equals_the_published_formula(kelvin: np.ndarray) -> None:
    out = composed(kelvin, Composite(channels_of(section(), BANDS)))
    b11, b14, b15 = np.moveaxis(kelvin, 2, 0)
    unclipped = np.stack([(b15 - b14 + 4) / 6, (b14 - b11 + 4) / 9, (b14 - 243) / 60], axis=2)
    assert out.shape == (2, 2, 3, 8, 8)
    assert np.allclose(out, unclipped.clip(0, 1), atol=1e-4)
    assert 0.1 < (out == 0).mean() < 0.9
    assert np.allclose(composed(kelvin, Composite(channels_of(section("ash_unclipped"), BANDS))), unclipped, atol=1e-4)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("bands", lambda b11, b14, b15: [(b - 200) / 120 for b in (b11, b14, b15)]),
        ("split_window", lambda _, b14, b15: [((b14 - b15 + 2) / 6).clip(0, 1)]),
        ("b14-b15", lambda _, b14, b15: [b14 - b15]),
        (["b14", "0.5 * (b11 + b15) - 2*b14 + 7"], lambda b11, b14, b15: [b14, 0.5 * (b11 + b15) - 2 * b14 + 7]),
        (["-(b14 - 243) / 60 / 2"], lambda _, b14, __: [-(b14 - 243) / 120]),
        (["(b14 - b15) / (b14 + b15)", "1 / b11"], lambda b11, b14, b15: [(b14 - b15) / (b14 + b15), 1 / b11]),
        (["3 - 2 * b14 / (b15 - 100) / 4"], lambda _, b14, b15: [3 - b14 / (b15 - 100) / 2]),
        (["b14 / b15 - b11 / b15"], lambda b11, b14, b15: [(b14 - b11) / b15]),
    ],
)
def test_channels_are_functions_of_the_bands(kelvin: np.ndarray, asked: Any, expected: Any) -> None:
    out = composed(kelvin, Composite(channels_of(section(asked), BANDS)))
    assert np.allclose(out, np.stack(expected(*np.moveaxis(kelvin, 2, 0)), axis=2), atol=1e-2, rtol=1e-5)


def test_imagenet_follows_the_clipped_composite(kelvin: np.ndarray) -> None:
    ash = composed(kelvin, Composite(channels_of(section("ash"), BANDS)))
    out = composed(kelvin, Composite(channels_of(section("ash", "imagenet"), BANDS)))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert np.allclose(out, (ash - mean[:, None, None]) / std[:, None, None], atol=1e-3)


def test_factors_act_on_the_bands_in_their_unit(kelvin: np.ndarray) -> None:
    names, factors = ["b14 - b15", "(b14 - b15) / (b14 + b15)", "(b14 - 243) / 60"], torch.rand(2, 2, 8, 8) / 10 + 0.95
    composite = Composite(channels_of(section(names), BANDS))
    packed = torch.from_numpy(((kelvin - 273.15) / 0.01).round().astype(np.int16))
    plain = compose(packed, composite, BANDS, 0.01, 273.15)
    out = compose(packed, composite, BANDS, 0.01, 273.15, factors)
    assert torch.allclose(out[:, :, 0], plain[:, :, 0] * factors, atol=1e-3)
    assert torch.allclose(out[:, :, 1], plain[:, :, 1], atol=1e-6)  # an index is that of the pixel
    assert torch.allclose(out[:, :, 2], ((60 * plain[:, :, 2] + 243) * factors - 243) / 60, atol=1e-4)


def test_per_image_gives_every_channel_mean_0_and_deviation_1(kelvin: np.ndarray) -> None:
    out = composed(kelvin, Composite((Channel({"b14": 1.0}), Channel({"b14": 1.0, "b15": -1.0})), per_image=True))
    assert np.allclose(out.mean((-2, -1)), 0, atol=1e-4)
    assert np.allclose(out.std((-2, -1)), 1, atol=1e-4)
    flat = composed(np.full((1, 1, 3, 4, 4), 280.0), Composite((Channel({"b14": 1.0}),), per_image=True))
    assert np.abs(flat).max() < 1e-3


def test_mapped_maps_the_clipped_channel(kelvin: np.ndarray) -> None:
    channel = Channel({"b14": 1.0, "b15": -1.0}, 4.0, (0.0, 6.0))
    plain, mapped = composed(kelvin, Composite((channel, channel.mapped(0.25, -3)))).swapaxes(0, 2).swapaxes(1, 2)[:2]
    assert np.allclose(mapped, 0.25 * plain - 3, atol=1e-4)


def test_a_composite_survives_json() -> None:
    ratio = parse_expression("(b14 - b15) / (b14 + b15 + 1)").mapped(2, 3)
    composite = Composite((Channel({"b14": 1 / 3}, -0.1, (0.0, 1.0)), Channel({"b11": 2.0, "b15": -1.0}), ratio), True)
    assert Composite.from_dict(json.loads(json.dumps(composite.to_dict()))) == composite
    # as files say that were written before there were ratios
    without = {"weights": {"b14": 1.0}, "constant": 0.0, "clip": None}
    assert Composite.from_dict({"channels": [without], "per_image": False}).channels == (Channel({"b14": 1.0}),)


def test_an_index_of_images_and_its_maps() -> None:
    counts = torch.randint(0, 256, (2, 1, 2, 8, 8), dtype=torch.uint8)
    counts[0, 0, :, 0] = 0  # nodata: nothing divided by nothing
    nir, red = counts[:, :, 0].double(), counts[:, :, 1].double()
    index = ((nir - red) / (nir + red)).nan_to_num(0)
    (channel,) = channels_of(section(["(nir - red) / (nir + red)"]), ("nir", "red"), "1")
    composite = Composite((channel, replace(channel.mapped(0.5, 0.5), clip=(0.0, 0.6))))
    plain, mapped = compose(counts, composite, ("nir", "red"), 1 / 255, 0.0).unbind(2)
    assert torch.allclose(plain.double(), index, atol=1e-6)
    there = nir + red > 0
    assert torch.allclose(mapped.double()[there], (0.5 + index / 2).clamp(0, 0.6)[there], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int16])
def test_bands_of_images_are_taken_as_they_are(dtype: torch.dtype) -> None:
    counts = (torch.arange(2 * 3 * 64).view(2, 1, 3, 8, 8) % 200).to(dtype)
    names = ("red", "green", "blue")
    out = compose(counts, Composite(channels_of(section("bands", "imagenet"), names, "1")), names, 1 / 255, 0.0)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (counts.float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    assert torch.allclose(out, expected, atol=1e-5)


def test_a_recipe_is_checked_before_there_is_a_dataset() -> None:
    check_composite(section(["(green - swir) / (green + swir)", "grey", "bands"]))
    for wrong in ("b17", "ashh", ["b14 +"]):
        with pytest.raises(RecipeError):
            check_composite(section(wrong))


@given(st.recursive(st.sampled_from(["b11", "b14", "3", "0.5"]), lambda inner: st.one_of(
    st.tuples(inner, st.sampled_from(["+", "-"]), inner).map(lambda p: f"({p[0]} {p[1]} {p[2]})"),
    inner.map(lambda p: f"-{p}"),
    st.tuples(inner, st.sampled_from(["* 2", "/ 4"])).map(" ".join),
), max_leaves=8))  # fmt: skip
def test_an_expression_means_what_python_means(text: str) -> None:
    channel, bands = parse_expression(text), {"b11": 270.0, "b14": 281.5}
    expected = eval(text, {"__builtins__": {}}, bands)
    assert channel.divisor is None
    found = sum(weight * bands[band] for band, weight in channel.weights.items()) + channel.constant
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("b14 * b15", "a product of bands is not linear"),
        ("b14 / b15 * b11", "a product of bands is not linear"),
        ("b14 / b15 + b11", "a sum of a ratio and bands is neither"),
        ("b14 / b15 + b11 / b14", "a sum of a ratio and bands is neither"),
        ("b14 / (b15 / b11)", "a ratio of ratios is neither"),
        ("b14 / 0", "division by zero"),
        ("b14 ** 2", r"'b14 \*\* 2' is not allowed"),
        ("__import__('os').system('true')", "is not allowed"),
        ("b14 if b15 else b11", "is not allowed"),
        ("b14 -", "it is not an expression"),
        ("'b14'", "is not allowed"),
        ("True", "is not allowed"),
        ("b14; b15", "it is not an expression"),
        ("", "it is not an expression"),
        ("b14" + "+b14" * 200, "has 803 characters, expected at most 500"),
        ("1e999 * b14", "not finite"),
        ("b14 + 1e999 - 1e999", "not finite"),
        ("1e300 * b14", r"or larger than 1e\+30"),
        ("b14 / 1e-35 / 1e-35", r"or larger than 1e\+30"),
    ],
)  # fmt: skip
def test_what_is_no_linear_expression_is_refused(text: str, reason: str) -> None:
    with pytest.raises(RecipeError, match=rf"data.composite: '.*{reason}.*expected an expression over b11, b14"):
        channels_of(section([text]), BANDS)


def test_unknown_composite_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"data.composite = 'ashh'.*did you mean 'ash'"):
        channels_of(section("ashh"), BANDS)


def test_names_and_expressions_make_one_list() -> None:
    mixed = channels_of(section(["split_window", "b14 - b11", "bands"]), BANDS)
    apart = [channels_of(section(one), BANDS) for one in ("split_window", ["b14 - b11"], "bands")]
    assert mixed == tuple(channel for channels in apart for channel in channels)
    assert mixed[0].clip == (0.0, 1.0)
    with pytest.raises(RecipeError, match=r"data.composite = 'ashh': expected a composite or an expression"):
        channels_of(section(["ashh", "b14 - b15"]), BANDS)
    with pytest.raises(RecipeError, match=r"data.composite = 'b16': expected bands of .*, found b16"):
        channels_of(section(["ash", "b16"]), BANDS)


def test_missing_bands_are_named() -> None:
    with pytest.raises(RecipeError, match=r"expected bands of b14.*, found b15"):
        channels_of(section("ash"), ("b14",))
    with pytest.raises(RecipeError, match=r"expected bands of b11, b14, b15, found b16"):
        channels_of(section(["b14 - b16"]), BANDS)


def test_a_channel_names_a_band() -> None:
    with pytest.raises(RecipeError, match="'b14 - b14': expected a band"):
        channels_of(section(["b14 - b14"]), BANDS)


def test_imagenet_wants_three_channels() -> None:
    with pytest.raises(RecipeError, match=r"'imagenet': expected 3 channels.*found 1 "):
        channels_of(section("split_window", "imagenet"), BANDS)


def test_a_long_expression_is_not_repeated() -> None:
    with pytest.raises(RecipeError, match=r"'(b14\+){10}...': it has 40003 characters") as refused:
        channels_of(section("b14+" * 10000 + "b14"), BANDS)
    assert len(str(refused.value)) < 500
