"""Affine maps, smooth distortions and enlarged windows, combined in one resampling.

A map gives for every point of the new image the point of the old image that it shows. A label with an offset d from its
image (see `contrails.inputs.augment.dihedral`) shows at u the image point u - d, so the new label at u is the old label
at map(u - d) + d. Images are interpolated bilinearly and mirrored at their edges. Targets are interpolated too; hard
targets are thresholded at 1/2 again. A pixel is valid if all pixels that it is interpolated from are inside and valid.
"""

import numpy as np
import torch
from torch.nn import functional

from contrails.inputs.augment.samples import Samples
from contrails.inputs.transfer import to_device
from contrails.recipe.augment import AffineSection, GridDistortionSection, ResizedCropSection

_INSIDE = 0.999
"""A pixel is valid if valid pixels have more than this sum of its interpolation weights; not 1, because of rounding."""


def affine_matrices(draws: np.ndarray, section: AffineSection, height: int, width: int) -> np.ndarray:
    """Return maps from new to old points, in pixels from the centre, (down, right, 1).

    Shape:
        draws (B, 7) from 0 to 1, the first unused, to float64 (B, 3, 3).
    """
    _, rotate, scale, shear_down, shear_right, down, right = (2 * draws - 1).T[:7]
    angle = np.radians(section.rotate_deg) * rotate
    tangents = [np.tan(np.radians(section.shear_deg) * shear) for shear in (shear_down, shear_right)]
    size = 1 + section.scale * scale
    one = np.ones_like(size)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    sheared = np.array([[one, tangents[0]], [tangents[1], one]])
    return _matrices(
        np.einsum("ijb,jkb->bik", rotation, sheared) / size[:, None, None],
        np.stack([section.shift * height * down, section.shift * width * right], axis=1),
    )


def crop_matrices(draws: np.ndarray, section: ResizedCropSection, height: int, width: int) -> np.ndarray:
    """Return maps from new to old points that enlarge a random window; shapes as `affine_matrices`."""
    _, area, ratio, down, right = draws.T[:5]
    side = np.sqrt(section.smallest + (1 - section.smallest) * area)
    stretch = section.ratio ** (ratio - 0.5)
    sides = np.stack([np.minimum(side * stretch, 1), np.minimum(side / stretch, 1)], axis=1)
    room = (1 - sides) / 2 * [height, width]
    return _matrices(sides[:, :, None] * np.eye(2), room * (2 * np.stack([down, right], axis=1) - 1))


def grid_nodes(seeds: list[int], section: GridDistortionSection, height: int, width: int) -> np.ndarray:
    """Return the displacements of the nodes of each sample's grid, (down, right) in pixels.

    Shape:
        float64 (B, 2, cells + 1, cells + 1).
    """
    count = section.cells + 1
    draws = np.stack([np.random.Generator(np.random.Philox(seed)).random((2, count, count)) for seed in seeds])
    reach = section.strength * np.array([height, width]) / section.cells
    nodes: np.ndarray = (2 * draws - 1) * reach[:, None, None]
    return nodes


def resample(
    samples: Samples, matrices: np.ndarray, nodes: np.ndarray | None, offset_px: tuple[float, float], *, hard: bool
) -> Samples:
    """Return resampled samples: new points are displaced as given by `nodes`, then mapped by `matrices`.

    Shape:
        matrices (B, 3, 3), nodes (B, 2, n, n) as above.
    """
    (height, width), device = samples.target.shape[-2:], samples.target.device
    maps = to_device(matrices, device, torch.float32)
    bends = None if nodes is None else to_device(nodes, device, torch.float32)
    points = _points(height, width, device)
    images = _sampled(samples.images.flatten(1, 2), _mapped(points, maps, bends), "reflection")
    offset = to_device(np.array(offset_px, np.float32), device)
    seen = _mapped(points - offset, maps, bends) + offset
    labels = torch.stack([samples.target, samples.valid.float()], dim=1)
    target, share = _sampled(labels, seen, "zeros").unbind(1)
    valid = share > _INSIDE
    target = ((target > 0.5).float() if hard else target) * valid
    return Samples(images.view_as(samples.images), target, valid, samples.weights)


def _matrices(linear: np.ndarray, shift: np.ndarray) -> np.ndarray:
    matrices = np.tile(np.eye(3), (len(linear), 1, 1))
    matrices[:, :2, :2], matrices[:, :2, 2] = linear, shift
    return matrices


def _points(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Return (down, right) of every pixel's centre from the centre of the image, float32 (H, W, 2)."""
    down, right = (torch.arange(side, device=device) - (side - 1) / 2 for side in (height, width))
    return torch.stack(torch.meshgrid(down, right, indexing="ij"), dim=-1)


def _mapped(points: torch.Tensor, maps: torch.Tensor, nodes: torch.Tensor | None) -> torch.Tensor:
    """Return the old point of each new one; shape: (H, W, 2) to (B, H, W, 2)."""
    height, width, _ = points.shape
    moved = points.expand(len(maps), -1, -1, -1)
    if nodes is not None:  # the outer nodes are on the edges of the image
        places = 2 * moved.flip(-1) / to_device(np.array([width, height]), points.device)
        bend = functional.grid_sample(nodes, places, mode="bicubic", padding_mode="border", align_corners=True)
        moved = moved + bend.movedim(1, -1)
    # no matrix product: its rounding can depend on the size of the batch
    linear, shift = maps[:, None, None, :2, :2], maps[:, None, None, :2, 2]
    return (linear * moved[..., None, :]).sum(-1) + shift


def _sampled(images: torch.Tensor, points: torch.Tensor, padding: str) -> torch.Tensor:
    """Interpolate images (B, C, H, W) bilinearly at points (B, H, W, 2)."""
    height, width = images.shape[-2:]
    places = 2 * points.flip(-1) / to_device(np.array([width, height]), images.device)
    return functional.grid_sample(images, places, mode="bilinear", padding_mode=padding, align_corners=False)
