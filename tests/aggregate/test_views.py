"""Test-time augmentation: what a view moves is moved back, with the offset of the labels, on real masks too."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from contrails.aggregate.members.views import View, parse_views, predict_views
from contrails.errors import RecipeError
from contrails.inputs.augment.dihedral import inverse, move_label
from contrails.models.outputs import Outputs
from contrails.models.segmenter import Segmenter

HALF = (0.5, 0.5)


class Blur(nn.Module):
    """Answers what a model would that learned labels half a pixel down-right: the mean of a pixel's neighbours."""

    def forward(self, inputs: torch.Tensor) -> Outputs:
        padded = nn.functional.pad(inputs, (1, 0, 1, 0), mode="replicate")
        return Outputs(nn.functional.avg_pool2d(padded, 2, stride=1)[:, 0])


class Constant(nn.Module):
    def forward(self, inputs: torch.Tensor) -> Outputs:
        return Outputs(torch.full_like(inputs[:, 0], 1.5))


def shifted() -> Segmenter:
    return Segmenter(Blur(), None, 1).eval()


def smooth(size: int = 48) -> torch.Tensor:
    noise = np.random.default_rng(0).normal(size=(1, 1, size, size))
    return torch.from_numpy(8 * ndimage.gaussian_filter(noise, (0, 0, 4, 4)) / 0.07).float()


@pytest.mark.parametrize("element", range(8))
def test_a_dihedral_view_gives_what_the_record_itself_gives(element: int) -> None:
    """A model that commutes with the moves, its half pixel apart, answers the same in every view."""
    image = smooth()
    plain = predict_views(shifted(), image, [View()], HALF)
    moved = predict_views(shifted(), image, [View(), View(element)], HALF)
    inner = (..., slice(2, -2), slice(2, -2))
    assert torch.allclose(moved[inner], plain[inner], atol=1e-6)
    if element:
        without = predict_views(shifted(), image, [View(), View(element)], (0.0, 0.0))
        assert (element == 4) == torch.allclose(without[inner], plain[inner], atol=1e-3)


@pytest.mark.parametrize("scale", [0.5, 0.8, 1.25, 2.0])
def test_a_scaled_view_stays_in_its_place(scale: float) -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 80), torch.linspace(-1, 1, 80), indexing="ij")
    ramp = (1.5 * x + 0.5 * y)[None, None]  # scaling a ramp loses nothing, so only its place can change
    plain = predict_views(shifted(), ramp, [View()], HALF)
    inner = (..., slice(8, -8), slice(8, -8))
    both, naive = (predict_views(shifted(), ramp, [View(), View(scale=scale)], offset) for offset in (HALF, (0.0, 0.0)))
    assert torch.allclose(both[inner], plain[inner], atol=1e-4)
    assert not torch.allclose(naive[inner], plain[inner], atol=5e-4)


@pytest.mark.parametrize("words", ["none", "flips", "d4", "d4+scales", "crop", "flips+crop"])
def test_the_mean_is_over_the_views_that_saw_a_pixel(words: str) -> None:
    constant = Segmenter(Constant(), 32, 8).eval()
    with torch.inference_mode():
        found = predict_views(constant, torch.rand(2, 1, 24, 24), parse_views(words), HALF, pad=3)
    assert found.shape == (2, 24, 24)
    assert torch.allclose(found, torch.sigmoid(torch.tensor(1.5)), atol=1e-6)


def test_words() -> None:
    assert parse_views("none") == (View(),)
    assert len(parse_views("d4+scales+crop")) == 48
    assert parse_views("d4+scales+crop")[0] == View()
    with pytest.raises(RecipeError, match="expected words joined by"):
        parse_views("d4,flips")
    with pytest.raises(RecipeError, match=r"expected square records, found 8 x 16; choose flips"):
        predict_views(shifted(), torch.zeros(1, 1, 8, 16), parse_views("d4"), HALF)
    assert predict_views(shifted(), torch.zeros(1, 1, 8, 16), parse_views("flips"), HALF).shape == (1, 8, 16)


def test_padding_has_something_to_mirror() -> None:
    with pytest.raises(RecipeError, match="--pad 24: expected less than 24 pixels"):
        predict_views(shifted(), torch.rand(1, 1, 24, 32), [View()], HALF, pad=24)


def test_padding_mirrors_and_is_cut_off() -> None:
    image = smooth()
    inner = (..., slice(2, -2), slice(2, -2))
    padded, plain = (predict_views(shifted(), image, [View()], HALF, pad) for pad in (5, 0))
    assert padded.shape == plain.shape
    assert torch.allclose(padded[inner], plain[inner], atol=1e-6)
    assert not torch.allclose(padded[..., 0, :], plain[..., 0, :], atol=1e-3)


@pytest.mark.parametrize("element", range(8))
def test_a_real_mask_moved_and_moved_back_is_the_same_on_the_interior(element: int, real_data: Path) -> None:
    paths = sorted(real_data.glob("train/*/human_pixel_masks.npy"))
    masks = [torch.from_numpy(np.load(path)[..., 0].astype(np.float32)) for path in paths]
    assert any(mask.any() for mask in masks)
    for mask in masks:
        back = move_label(move_label(mask, element, HALF, -1.0), inverse(element), HALF, -1.0)
        assert torch.equal(back[1:-1, 1:-1], mask[1:-1, 1:-1])
