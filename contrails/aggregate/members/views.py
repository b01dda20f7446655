"""Test-time augmentation: a model predicts several views of a record, which are transformed back and averaged.

Labels are shifted against the image by `label_offset_px` d (see `contrails.inputs.augment`), and so are the predictions
of a model trained on them. A view maps the image point x to Ax, where A is an element of the dihedral group or a scale;
its prediction for x is at Ax + d, and the label of x is at x + d. So the label's point u is looked up at A(u - d) + d:
a shift of whole pixels for the dihedral group, of a fraction of a pixel for scales. Without this correction,
augmentation loses more than it gains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch.nn import functional

from contrails.aggregate.options import ELEMENTS, FULL, require_views
from contrails.errors import RecipeError
from contrails.inputs.augment.dihedral import inverse, move_image, move_label
from contrails.models.segmenter import Segmenter, autocast

_CROP = 0.75
_SCALES = (1.0, 0.8, 1.25)


@dataclass(frozen=True)
class View:
    """A dihedral element, a scale of the model's input, and the visible fraction of each side, around the centre."""

    element: int = 0
    scale: float = 1.0
    crop: float = 1.0


def parse_views(text: str) -> tuple[View, ...]:
    """Return the views for words such as `d4`, `flips+scales` or `none`; the unchanged record comes first.

    Raises:
        RecipeError: a word is unknown.
    """
    require_views(text)
    words = text.split("+")
    elements = dict.fromkeys(element for word in words for element in ELEMENTS.get(word, (0,)))
    scales = _SCALES if "scales" in words else (1.0,)
    crops = (1.0, _CROP) if "crop" in words else (1.0,)
    return tuple(View(element, scale, crop) for crop, scale, element in product(crops, scales, elements))


def predict_views(
    model: Segmenter,
    inputs: torch.Tensor,
    views: Sequence[View],
    offset_px: tuple[float, float],
    pad: int = 0,
    precision: str = FULL,
) -> torch.Tensor:
    """Return the mean probability over the views that see a pixel; NaN where a prediction is not finite.

    Args:
        model: the network in evaluation mode.
        inputs: inputs as in training.
        views: the views; the first one must see the whole record.
        offset_px: label offset of the dataset.
        pad: pixels by which the record is padded on each side, mirrored, before prediction.
        precision: precision of the network: fp32, bf16 or fp16. All else is computed in float32.

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
        probs = _moved(model, window, view, offset_px, pad, precision)
        border = (left, left, top, top)
        total = total + functional.pad(_back(probs, view, offset_px), border)
        weight = weight + functional.pad(_back(torch.ones_like(probs[:1]), view, offset_px), border)
    return total / weight


def _moved(
    model: Segmenter, inputs: torch.Tensor, view: View, offset_px: tuple[float, float], pad: int, precision: str
) -> torch.Tensor:
    """Return the probabilities of a view in its own coordinates, at the resolution of the label."""
    inputs = move_image(inputs, view.element)
    if pad >= min(inputs.shape[-2:]):
        raise RecipeError(f"--pad {pad}: expected less than {min(inputs.shape[-2:])} pixels, the side of the input")
    seen = functional.pad(inputs, (pad,) * 4, mode="reflect") if pad else inputs
    # a model with a fixed input size scales every input to it, so a part of a record must be scaled to a part of that
    # size
    share = seen.shape[-1] / inputs.shape[-1] * view.crop if model.size is not None else 1.0
    with autocast(seen.device, precision):
        mask = model(seen, view.scale * share).mask
    logits = mask[..., pad : pad + inputs.shape[-2], pad : pad + inputs.shape[-1]]
    # sigmoid would turn an infinite logit into a valid probability and hide the error
    probs = torch.where(torch.isfinite(logits), torch.sigmoid(logits), torch.nan)
    return _resampled(probs, tuple(part * (1 / view.scale - 1) for part in offset_px)) if view.scale != 1 else probs


def _back(probs: torch.Tensor, view: View, offset_px: tuple[float, float]) -> torch.Tensor:
    """Undo the dihedral move; pixels exposed by the shift of the label become 0."""
    return move_label(probs, inverse(view.element), offset_px, 0.0) if view.element else probs


def _resampled(image: torch.Tensor, shift: tuple[float, ...]) -> torch.Tensor:
    """Return the image shifted by `shift` (down, right) pixels, bilinear, with edge pixels repeated."""
    if not any(shift):
        return image
    height, width = image.shape[-2:]
    down, right = shift
    move = torch.tensor([[1.0, 0.0, 2 * right / width], [0.0, 1.0, 2 * down / height]], device=image.device)
    grid = functional.affine_grid(move.expand(len(image), 2, 3), [len(image), 1, height, width], align_corners=False)
    return functional.grid_sample(image[:, None], grid, padding_mode="border", align_corners=False)[:, 0]
