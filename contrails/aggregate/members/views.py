"""Test-time augmentation: a model sees a record in several views, and what it answers is brought back and averaged.

Labels sit off the image by `label_offset_px` (see `contrails.inputs.augment`), and so do the predictions of a model
that learned from them. A view maps the image point x to Ax, with A a dihedral move or a scale; its prediction for x
lies at Ax + d, where the label has x + d. So u in the label is looked up at A(u - d) + d: a whole-pixel shift for
dihedral moves, a part of a pixel for scales. Without it augmentation loses more than it gains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch.nn import functional

from contrails.aggregate.options import ELEMENTS, require_views
from contrails.errors import RecipeError
from contrails.inputs.augment.dihedral import inverse, move_image, move_label
from contrails.models.segmenter import Segmenter

_CROP = 0.75
_SCALES = (1.0, 0.8, 1.25)


@dataclass(frozen=True)
class View:
    """A dihedral element, a scale of the model's input, and the share of each side that it sees, around the centre."""

    element: int = 0
    scale: float = 1.0
    crop: float = 1.0


def parse_views(text: str) -> tuple[View, ...]:
    """Return the views of words such as `d4`, `flips+scales` or `none`; the unchanged record comes first.

    Raises:
        RecipeError: an unknown word.
    """
    require_views(text)
    words = text.split("+")
    elements = dict.fromkeys(element for word in words for element in ELEMENTS.get(word, (0,)))
    scales = _SCALES if "scales" in words else (1.0,)
    crops = (1.0, _CROP) if "crop" in words else (1.0,)
    return tuple(View(element, scale, crop) for crop, scale, element in product(crops, scales, elements))


def predict_views(
    model: Segmenter, inputs: torch.Tensor, views: Sequence[View], offset_px: tuple[float, float], pad: int = 0
) -> torch.Tensor:
    """Return the mean of the views' probabilities; a view counts where it saw the pixel; NaN where it is not finite.

    Args:
        model: in evaluation mode.
        inputs: as the model was trained on.
        views: the first sees all of the record.
        offset_px: of the dataset's labels.
        pad: pixels that the record is continued by beyond its edges, mirrored, before the model sees it.

    Shape:
        inputs (B, C, H, W) or (B, T, C, H, W), square where a view transposes, to float32 (B, H, W).
    """
    if any(view.element & 4 for view in views) and inputs.shape[-2] != inputs.shape[-1]:
        raise RecipeError(
            f"--tta d4: expected square records, found {inputs.shape[-2]} x {inputs.shape[-1]}; choose flips"
        )
    height, width = inputs.shape[-2:]
    total = weight = torch.zeros(1, device=inputs.device)
    for view in views:
        top, left = (round(side * (1 - view.crop) / 2) for side in (height, width))
        window = inputs[..., top : height - top, left : width - left]
        probs = _moved(model, window, view, offset_px, pad)
        border = (left, left, top, top)
        total = total + functional.pad(_back(probs, view, offset_px), border)
        weight = weight + functional.pad(_back(torch.ones_like(probs[:1]), view, offset_px), border)
    return total / weight


def _moved(
    model: Segmenter, inputs: torch.Tensor, view: View, offset_px: tuple[float, float], pad: int
) -> torch.Tensor:
    """Return the probabilities of a view in its own frame, at the scale of the label."""
    inputs = move_image(inputs, view.element)
    if pad >= min(inputs.shape[-2:]):
        raise RecipeError(f"--pad {pad}: expected fewer pixels than there are to mirror, {min(inputs.shape[-2:])}")
    seen = functional.pad(inputs, (pad,) * 4, mode="reflect") if pad else inputs
    # a model with an input size of its own enlarges whatever it gets to that: a part of a record gets a part of it
    share = seen.shape[-1] / inputs.shape[-1] * view.crop if model.size is not None else 1.0
    logits = model(seen, view.scale * share).mask[..., pad : pad + inputs.shape[-2], pad : pad + inputs.shape[-1]]
    # an infinite logit has a probability, and nobody would notice
    probs = torch.where(torch.isfinite(logits), torch.sigmoid(logits), torch.nan)
    return _resampled(probs, tuple(part * (1 / view.scale - 1) for part in offset_px)) if view.scale != 1 else probs


def _back(probs: torch.Tensor, view: View, offset_px: tuple[float, float]) -> torch.Tensor:
    """Undo the dihedral move; pixels that the label's shift exposes become 0."""
    return move_label(probs, inverse(view.element), offset_px, 0.0) if view.element else probs


def _resampled(image: torch.Tensor, shift: tuple[float, ...]) -> torch.Tensor:
    """Return the image looked up `shift` (down, right) pixels further, bilinear, the edge continued."""
    if not any(shift):
        return image
    height, width = image.shape[-2:]
    down, right = shift
    move = torch.tensor([[1.0, 0.0, 2 * right / width], [0.0, 1.0, 2 * down / height]], device=image.device)
    grid = functional.affine_grid(move.expand(len(image), 2, 3), [len(image), 1, height, width], align_corners=False)
    return functional.grid_sample(image[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
