"""Dihedral moves of image and label that keep them aligned.

Labels can be displaced from the image by a fraction of a pixel (`label_offset_px`; half a pixel down and right in
OpenContrails), so that moving both in the same way would misalign them. With A the linear part of the move and d the
offset, an image point x moves to Ax and its label at x + d to Ax + Ad. It belongs at Ax + d, so the moved label is
shifted by d - Ad, which must be whole pixels. The border exposed by the shift becomes "ignore".

An element is a sum of 4 (transpose, applied first), 2 (flip vertically) and 1 (flip horizontally); 0 is the identity.
"""

from collections.abc import Sequence

import torch

from contrails.errors import DataError


def inverse(element: int) -> int:
    """Return the inverse of `element`."""
    if element & 4:  # a transposition exchanges the two flips
        return 4 | (element & 1) << 1 | (element & 2) >> 1
    return element


def move_image(image: torch.Tensor, element: int) -> torch.Tensor:
    """Apply a dihedral element to the last two axes (square when it transposes)."""
    if element & 4:
        image = image.transpose(-1, -2)
    axes = [axis for bit, axis in ((2, -2), (1, -1)) if element & bit]
    return image.flip(axes) if axes else image


def label_shift(element: int, offset_px: tuple[float, float]) -> tuple[int, int]:
    """Return the whole-pixel shift (down, right) that a moved label needs: d - Ad.

    Raises:
        DataError: the shift is not in whole pixels, so the move cannot keep image and label aligned.
    """
    down, right = offset_px
    moved_down, moved_right = (right, down) if element & 4 else (down, right)
    moved_down = -moved_down if element & 2 else moved_down
    moved_right = -moved_right if element & 1 else moved_right
    shift = (down - moved_down, right - moved_right)
    if any(part != int(part) for part in shift):
        raise DataError(
            f"label_offset_px = {offset_px}: expected a label shift in whole pixels by a flip, found {shift}; "
            "set augment.dihedral=0 for this dataset"
        )
    return int(shift[0]), int(shift[1])


def move_label(label: torch.Tensor, element: int, offset_px: tuple[float, float], fill: float) -> torch.Tensor:
    """Apply a dihedral element to a label, shifted to stay on its image; the exposed border gets `fill`."""
    return shift_label(move_image(label, element), label_shift(element, offset_px), fill)


def apply_dihedral(
    images: torch.Tensor, labels: torch.Tensor, elements: Sequence[int], offset_px: tuple[float, float], fill: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply an element to each sample, in the order of `elements`.

    Shape:
        images (B, ..., H, W) and labels (B, H, W), both returned in the same shape.
    """
    images = torch.stack([move_image(image, element) for image, element in zip(images, elements, strict=True)])
    labels = torch.stack(
        [move_label(label, element, offset_px, fill) for label, element in zip(labels, elements, strict=True)]
    )
    return images, labels


def shift_label(label: torch.Tensor, shift: tuple[int, int], fill: float) -> torch.Tensor:
    """Shift the last two axes by whole pixels (down, right) and fill the exposed border with `fill`."""
    down, right = shift
    if not (down or right):
        return label
    height, width = label.shape[-2:]
    out = torch.full_like(label, fill)
    rows, columns = height - abs(down), width - abs(right)
    out[..., max(down, 0) : max(down, 0) + rows, max(right, 0) : max(right, 0) + columns] = label[
        ..., max(-down, 0) : max(-down, 0) + rows, max(-right, 0) : max(-right, 0) + columns
    ]
    return out
