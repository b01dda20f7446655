"""Changes on the device: label and ignored pixels follow the image, and each sample has its own draw."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.special import betaincinv

from contrails.errors import RecipeError
from contrails.inputs.augment import geometry, mixing
from contrails.inputs.augment.chain import Chain, require_reversible
from contrails.inputs.augment.dihedral import move_image, move_label
from contrails.inputs.augment.samples import Samples
from contrails.recipe.augment import MIXING, NUM_DRAWS, AffineSection, AugmentSection, Kind

HALF = (0.5, 0.5)
KINDS = [name for name, kind in AugmentSection() if isinstance(kind, Kind) and name != "noise"]
"""What changes samples; noise changes their bands before."""
ROUND_ANGLES = {"rotate_deg": 180, "scale": 0.3, "shear_deg": 20, "shift": 0.2}


def chain_of(kinds: dict[str, dict[str, Any]], offset: tuple[float, float] = HALF, *, hard: bool = False) -> Chain:
    tables = {name: {"probability": 1.0} | options for name, options in kinds.items()}
    return Chain(AugmentSection.model_validate(tables), offset, label_frame=1, hard=hard)


def draws_for(chain: Chain, count: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {name: random.random((count, NUM_DRAWS)) for name in chain.section.kinds}


def field(points: torch.Tensor, sample: int) -> torch.Tensor:
    """A smooth image from 0 to 1 at points (..., 2), another one for each sample."""
    down, right = points.unbind(-1)
    return 0.5 + 0.25 * (torch.sin(0.21 * down + 0.1 * right + sample) + torch.cos(0.17 * right - 0.13 * down * sample))


def smooth_samples(count: int = 5, size: int = 40, frames: int = 1, offset: tuple[float, float] = HALF) -> Samples:
    """Images of one channel, and as target what they show at the label's offset: u shows u - offset."""
    axis = torch.arange(float(size))
    points = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    images = torch.stack([field(points, index) for index in range(count)])
    target = torch.stack([field(points - torch.tensor(offset), index) for index in range(count)])
    return Samples(
        images[:, None, None].repeat(1, frames, 1, 1, 1), target, torch.ones(count, size, size, dtype=torch.bool)
    )


def at_labels(images: torch.Tensor) -> torch.Tensor:
    """Return (B, H, W) at u - 1/2, where labels half a pixel off look, by the mean of four pixels."""
    image = images[:, 0, 0]
    shifted = torch.nn.functional.pad(image[:, None], (1, 0, 1, 0), mode="replicate")[:, 0]
    return (shifted[:, 1:, 1:] + shifted[:, :-1, 1:] + shifted[:, 1:, :-1] + shifted[:, :-1, :-1]) / 4


MOVING: list[tuple[str, dict[str, Any]]] = [
    ("affine", ROUND_ANGLES),
    ("grid_distortion", {"cells": 3}),
    ("resized_crop", {"smallest": 0.3}),
    ("mosaic", {}),
    ("cutmix", {}),
    ("mixup", {}),
    ("cutout", {}),
]


@pytest.mark.parametrize(("name", "options"), MOVING)
def test_labels_half_a_pixel_off_stay_on_their_image(name: str, options: dict[str, Any]) -> None:
    samples = smooth_samples()
    chain = chain_of({name: options})
    moved = chain.apply(samples, draws_for(chain, 5))
    assert not torch.equal(moved.images, samples.images)
    shows, valid = at_labels(moved.images), moved.valid.clone()
    valid[:, 0], valid[:, :, 0] = False, False  # half of these labels lies beyond the image
    assert 0.3 < valid.float().mean() < 1
    error = (shows - moved.target).abs()[valid]
    # what a seam, or a label moved like an image, would not be
    assert error.mean() < 4e-3
    assert error.quantile(0.999) < 3e-2
    if name in ("affine", "grid_distortion", "resized_crop"):
        naive = chain_of({name: options}, (0.0, 0.0)).apply(samples, draws_for(chain, 5))
        naive_error = (at_labels(naive.images) - naive.target).abs()[naive.valid & valid]
        assert naive_error.mean() > 1.5 * error.mean()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("hard", [False, True])
def test_ignored_pixels_never_come_back(name: str, hard: bool) -> None:
    """What is ignored shows in the image by a value that nothing else has."""
    samples = smooth_samples(frames=3)
    valid = samples.valid.clone()
    valid[:, 10:20, 5:30] = valid[3] = False
    samples.images[..., 11:18, 6:28] = 100.0
    samples = replace(samples, target=(samples.target > 0.7).float() * valid, valid=valid)
    chain = chain_of({name: {}}, hard=hard)
    changed = chain.apply(samples, draws_for(chain, 5))
    assert changed.valid.dtype == torch.bool
    seen = changed.images[:, 1, 0] > 50
    assert seen.any()
    assert not changed.valid[seen].any()
    assert not changed.target[~changed.valid].any()
    assert (changed.valid[:3].flatten(1).sum(1) > 0).all()
    assert torch.isfinite(changed.images).all()
    if hard and name not in ("mixup",):
        assert set(changed.target[changed.valid].tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("element", range(8))
def test_quarter_turns_and_flips_are_those_of_the_dihedral_group(element: int) -> None:
    """The same element as a matrix: the general rule for labels agrees with the whole-pixel one."""
    random = torch.Generator().manual_seed(0)
    images = torch.rand(1, 1, 1, 16, 16, generator=random)
    target = (torch.rand(1, 16, 16, generator=random) < 0.3).float()
    linear = np.eye(2)
    for bit, matrix in ((4, [[0, 1], [1, 0]]), (2, [[-1, 0], [0, 1]]), (1, [[1, 0], [0, -1]])):
        linear = np.array(matrix) @ linear if element & bit else linear
    maps = np.eye(3)[None].copy()
    maps[0, :2, :2] = np.linalg.inv(linear)
    samples = Samples(images, target, torch.ones(1, 16, 16, dtype=torch.bool))
    moved = geometry.resample(samples, maps, None, HALF, hard=False)
    assert torch.allclose(moved.images, move_image(images, element), atol=1e-5)
    expected = move_label(target, element, HALF, -1)
    assert torch.equal(moved.valid, expected >= 0)
    assert torch.allclose(moved.target, expected.clamp(min=0), atol=1e-5)


def test_a_shift_moves_by_pixels_and_exposes_a_border() -> None:
    samples = smooth_samples(1, 20)
    draws = np.full((1, NUM_DRAWS), 0.5)
    draws[0, 5:7] = 1.0, 0.5  # as far down as it goes, in the map from new to old: the image moves up
    maps = geometry.affine_matrices(draws[:, :7], AffineSection(shift=0.25), 20, 20)
    moved = geometry.resample(samples, maps, None, HALF, hard=False)
    assert torch.allclose(moved.images[..., :15, :], samples.images[..., 5:, :], atol=1e-5)
    assert torch.allclose(moved.target[:, :15], samples.target[:, 5:], atol=1e-5)
    assert moved.valid[:, :15].all()
    assert not moved.valid[:, 15:].any()


@pytest.mark.parametrize("name", KINDS)
def test_each_sample_has_its_own_draw(name: str) -> None:
    samples = smooth_samples(frames=3)
    samples = replace(samples, images=samples.images * torch.arange(1.0, 4.0).view(1, 3, 1, 1, 1))
    samples.target[1:] *= 0.4  # all but the first are negative
    chain = Chain(AugmentSection.model_validate({name: {"probability": 0.5}}), HALF, label_frame=1)
    draws = draws_for(chain, 5)
    draws[name][:, 0] = [0.9, 0.1, 0.9, 0.2, 0.9]  # the second and the fourth are changed
    if name == "copy_paste":
        draws[name][:, 1] = [0, 0.99, 0, 0.3, 0]  # and take from the first
    changed = chain.apply(samples, draws)
    same = [torch.equal(one, other) for one, other in zip(changed.images, samples.images, strict=True)]
    assert same == [True, False, True, False, True]
    draws[name][1, 1:] = 1 - draws[name][1, 1:]
    again = chain.apply(samples, draws)
    assert torch.equal(again.images[2:], changed.images[2:])
    if name not in ("time_reversal", "copy_paste"):
        assert not torch.equal(again.images[1], changed.images[1])
    assert torch.equal(samples.images, smooth_samples(frames=3).images * torch.arange(1.0, 4.0).view(1, 3, 1, 1, 1))


@pytest.mark.parametrize("name", ["affine", "grid_distortion", "resized_crop", "mosaic", "cutmix", "blur", "cutout"])
def test_frames_of_a_record_change_together(name: str) -> None:
    chain = chain_of({name: {}})
    changed = chain.apply(smooth_samples(frames=3), draws_for(chain, 5))
    assert torch.equal(changed.images[:, 0], changed.images[:, 2])


def test_blur_is_that_of_scipy() -> None:
    chain = chain_of({"blur": {"sigma_px": 2.0}})
    samples, draws = smooth_samples(3), draws_for(chain, 3)
    noisy = torch.rand(samples.images.shape, generator=torch.Generator().manual_seed(0))
    changed = chain.apply(replace(samples, images=noisy), draws)
    for index in range(3):
        sigma = 2.0 * draws["blur"][index, 1]
        expected = ndimage.gaussian_filter(noisy[index, 0, 0].numpy(), sigma, mode="nearest", radius=6)
        assert np.allclose(changed.images[index, 0, 0], expected, atol=1e-5)
    assert torch.equal(changed.target, samples.target)


def test_noise_is_one_factor_for_all_bands() -> None:
    chain = Chain(AugmentSection.model_validate({"noise": {"probability": 0.5, "strength": 0.5}}))
    draws = draws_for(chain, 3)
    draws["noise"][:, 0] = 0.1, 0.9, 0.2
    factors = chain.band_factors(draws, (2, 40, 40), torch.device("cpu"))
    assert factors is not None
    assert factors.shape == (3, 2, 40, 40)
    assert (factors[1] == 1).all()
    assert not torch.allclose(factors[0, 0], factors[0, 1], atol=1e-2)
    deviations = factors[[0, 2]].flatten(1).std(1)
    assert np.allclose(deviations, 0.5 * draws["noise"][[0, 2], 1], rtol=0.05)
    draws["noise"][:, 0] = 0.9
    assert chain.band_factors(draws, (2, 40, 40), torch.device("cpu")) is None
    samples = smooth_samples(3)
    assert chain.apply(samples, draws) is samples


def test_brightness_and_contrast_keep_the_mean_apart() -> None:
    chain = chain_of({"brightness_contrast": {"brightness": 0.2, "contrast": 0.5}})
    samples, draws = smooth_samples(3), draws_for(chain, 3)
    changed = chain.apply(samples, draws).images.flatten(1)
    before, (_, added, factor) = samples.images.flatten(1), 2 * draws["brightness_contrast"].T[:3] - 1
    assert np.allclose(changed.mean(1) - before.mean(1), 0.2 * added, atol=1e-5)
    assert np.allclose(changed.std(1) / before.std(1), 1 + 0.5 * factor, atol=1e-5)


def test_cutout_hides_and_ignores() -> None:
    chain = chain_of({"cutout": {"holes": 2, "size": 0.5}})
    samples = smooth_samples(3)
    changed = chain.apply(samples, draws_for(chain, 3))
    hidden = (changed.images != samples.images)[:, 0, 0]
    assert hidden.flatten(1).any(1).all()
    assert not changed.valid[hidden].any()
    # and the labels that lie half on a hidden pixel
    assert (~changed.valid).sum() > hidden.sum()


@pytest.mark.parametrize("target", ["mean", "or"])
def test_mixup_weighs_images_and_labels(target: str) -> None:
    chain = chain_of({"mixup": {"alpha": 0.3, "target": target}})
    samples, draws = smooth_samples(4), draws_for(chain, 4)
    changed = chain.apply(samples, draws)
    others = mixing.partners(np.arange(4), draws["mixup"][:, 1], 4)
    weights = betaincinv(0.3, 0.3, draws["mixup"][:, 2])
    for index, (other, weight) in enumerate(zip(others, weights, strict=True)):
        image = weight * samples.images[index] + (1 - weight) * samples.images[other]
        assert torch.allclose(changed.images[index], image.float(), atol=1e-5)
        mean = weight * samples.target[index] + (1 - weight) * samples.target[other]
        larger = torch.maximum(samples.target[index], samples.target[other])
        assert torch.allclose(changed.target[index], larger if target == "or" else mean.float(), atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_made_of_two_records_counts_as_the_lesser(name: str) -> None:
    samples = replace(smooth_samples(frames=3), weights=torch.tensor([1.0, 0.5, 1.0, 1.0, 0.25]))
    chain = chain_of({name: {}})
    draws = draws_for(chain, 5)
    draws[name][:, 1:4] = 0.0  # partners are the next ones
    weights = chain.apply(samples, draws).weights
    assert weights is not None
    assert weights.tolist() == ([0.5, 0.5, 1, 0.25, 0.25] if name in MIXING else [1, 0.5, 1, 1, 0.25])


def test_partners_are_others_and_all_of_them() -> None:
    indices, draws = np.repeat(np.arange(5), 100), np.tile(np.linspace(0, 0.999, 100), 5)
    found = mixing.partners(indices, draws, 5)
    assert (found != indices).all()
    assert all(set(found[indices == index]) == set(range(5)) - {index} for index in range(5))
    assert mixing.partners(np.array([0]), np.array([0.7]), 1) == [0]


def test_contrails_are_pasted_into_negative_samples() -> None:
    images, target = torch.zeros(3, 1, 1, 12, 12), torch.zeros(3, 12, 12)
    images[:, 0, 0] += torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    target[1, 5:7, 4:8] = 1.0
    target[1, 7, 4] = 0.25
    target[2, 0, 0] = 1.0
    valid = torch.ones(3, 12, 12, dtype=torch.bool)
    valid[1, 4, 4] = valid[1, 11, 11] = valid[0, 0, 11] = False
    samples = Samples(images, target, valid)
    chain = chain_of({"copy_paste": {"margin_px": 1}})
    draws = {"copy_paste": np.zeros((3, NUM_DRAWS))}  # each takes from the next one
    changed = chain.apply(samples, draws)
    assert torch.equal(changed.target[0], target[1])
    assert (~changed.valid[0]).nonzero().tolist() == [[0, 11], [4, 4]]  # its own, and what was pasted
    assert torch.equal(changed.images[1:], images[1:])
    assert torch.equal(changed.target[1:], target[1:])
    # labels 5 and 6 lie on the image rows 4 to 6, and a pixel around
    expected = torch.ones(12, 12)
    expected[3:8, 2:9] = 2.0
    assert torch.equal(changed.images[0, 0, 0], expected)


def test_time_runs_backwards_and_the_label_frame_stays() -> None:
    samples = smooth_samples(2, frames=3)
    samples = replace(samples, images=samples.images + torch.arange(3.0).view(1, 3, 1, 1, 1))
    chain = chain_of({"time_reversal": {}})
    changed = chain.apply(samples, draws_for(chain, 2))
    assert torch.equal(changed.images, samples.images.flip(1))
    require_reversible([-2, 0, 2])
    with pytest.raises(
        RecipeError, match=r"symmetric around the labelled one, found data.frames at distances \[-1, 0\] from"
    ):
        require_reversible([-1, 0])


def test_a_lost_frame_is_its_neighbour() -> None:
    images = torch.arange(5.0).view(1, 5, 1, 1, 1).expand(40, 5, 1, 4, 4)
    samples = Samples(images, torch.zeros(40, 4, 4), torch.ones(40, 4, 4, dtype=torch.bool))
    chain = replace(chain_of({"frame_dropout": {}}), label_frame=3)
    seen = {tuple(image[:, 0, 0, 0].tolist()) for image in chain.apply(samples, draws_for(chain, 40)).images}
    assert seen == {(1, 1, 2, 3, 4), (0, 2, 2, 3, 4), (0, 1, 3, 3, 4), (0, 1, 2, 3, 3)}


def test_what_is_off_is_not_there() -> None:
    assert AugmentSection().kinds == {}
    chain = chain_of({"affine": {"probability": 0.0}})
    assert chain.section.kinds == {}
    samples = smooth_samples()
    assert chain.apply(samples, {}) is samples
    unlucky = chain_of({"affine": {"probability": 1e-9}, "mixup": {"probability": 1e-9}})
    assert unlucky.apply(samples, draws_for(unlucky, 5)) is samples
