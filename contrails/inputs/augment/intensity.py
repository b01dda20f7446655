"""Augmentation of pixel values, without geometry."""

import math

import numpy as np
import torch
from torch.nn import functional

from contrails.inputs.augment.rectangles import covered
from contrails.inputs.augment.samples import Samples
from contrails.inputs.transfer import to_device
from contrails.recipe.augment import BlurSection, BrightnessContrastSection, CutoutSection, NoiseSection


def brightness_contrast(images: torch.Tensor, draws: np.ndarray, section: BrightnessContrastSection) -> torch.Tensor:
    """Return (x - mean) c + mean + b, with the mean of each channel over the frames and pixels of its sample.

    c and b are the same for all channels and frames of a sample.

    Shape:
        images (B, T, C, H, W), draws (B, 3) from 0 to 1, the first unused.
    """
    _, brightness, contrast = (2 * draws - 1).T[:3]
    added, factor = (
        _column(values, images) for values in (section.brightness * brightness, 1 + section.contrast * contrast)
    )
    mean = images.mean((1, 3, 4), keepdim=True)
    return (images - mean) * factor + mean + added


def noise(
    shape: tuple[int, int, int], seeds: list[int], draws: np.ndarray, section: NoiseSection, device: torch.device
) -> torch.Tensor:
    """Return the factor 1 + s n of all bands, with n drawn from a normal distribution for each pixel and frame.

    Each sample has its own generator; s is uniform from 0 to the section's strength.

    Shape:
        shape (T, H, W), draws (B, 2) from 0 to 1, the first unused, to float32 (B, T, H, W).
    """
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    normal = torch.stack([torch.randn(shape, generator=each, device=device) for each in generators])
    strengths = to_device(section.strength * draws[:, 1], device, torch.float32)
    return 1 + strengths.view(-1, 1, 1, 1) * normal


def blur(images: torch.Tensor, draws: np.ndarray, section: BlurSection) -> torch.Tensor:
    """Return images blurred by a Gaussian whose sigma is uniform from 0 to `sigma_px`; edges are replicated.

    Shape:
        images (B, T, C, H, W), draws (B, 2) from 0 to 1, the first unused.
    """
    reach = math.ceil(3 * section.sigma_px)
    sigmas = np.maximum(section.sigma_px * draws[:, 1], 1e-3)
    kernels = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigmas[:, None] ** 2))
    weights = to_device(kernels / kernels.sum(1, keepdims=True), images.device, torch.float32)
    flat = images.flatten(1, 2)
    for axis, border in ((-1, (reach, reach, 0, 0)), (-2, (0, 0, reach, reach))):
        padded, size = functional.pad(flat, border, mode="replicate"), flat.shape[axis]
        # a sum of shifted copies, as every sample has another kernel
        flat = torch.zeros_like(flat)
        for place in range(2 * reach + 1):
            flat += weights[:, place, None, None, None] * padded.narrow(axis, place, size)
    return flat.view_as(images)


def cutout(samples: Samples, seeds: list[int], section: CutoutSection, offset_px: tuple[float, float]) -> Samples:
    """Return samples with ignored rectangles filled with each channel's mean (cutout, DeVries and Taylor 2017)."""
    height, width = samples.target.shape[-2:]
    draws = np.stack([np.random.Generator(np.random.Philox(seed)).random((section.holes, 4)) for seed in seeds])
    sides = np.maximum((draws[..., :2] * section.size * [height, width]).round(), 1)
    first = (draws[..., 2:] * ([height, width] - sides)).round()
    corners = np.concatenate([first, first + sides], axis=-1)
    hidden, unseen = torch.zeros_like(samples.target), torch.zeros_like(samples.target)
    for hole in range(section.holes):
        for mask, offset in ((hidden, (0.0, 0.0)), (unseen, offset_px)):
            torch.maximum(mask, covered(corners[:, hole], mask.shape, offset, mask.device), out=mask)
    mean = samples.images.mean((1, 3, 4), keepdim=True)
    images = torch.where(hidden[:, None, None] > 0, mean, samples.images)
    valid = samples.valid & (unseen == 0)
    return Samples(images, samples.target * valid, valid, samples.weights)


def _column(values: np.ndarray, images: torch.Tensor) -> torch.Tensor:
    """Return one number per sample as a tensor that broadcasts with images."""
    return to_device(values, images.device, torch.float32).view(-1, 1, 1, 1, 1)
