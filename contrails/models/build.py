"""A network from a recipe: an smp architecture that takes any size and answers at the label's."""

import sys
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from contrails.config import Recipe
from contrails.errors import RecipeError
from contrails.models.names import require_known


class Segmenter(nn.Module):
    """An smp model whose input is enlarged to `size`, padded to what the encoder divides, and undone in the output."""

    def __init__(self, model: nn.Module, size: int | None, multiple: int) -> None:
        super().__init__()
        self.model, self.size, self.multiple = model, size, multiple

    def forward(self, inputs: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        """Return logits; `scale` multiplies the sides that the encoder sees.

        Shape:
            inputs (B, C, H, W) to float32 (B, H, W): the output is resized to the label's size before the loss.
        """
        height, width = inputs.shape[-2:]
        sides = (height, width) if self.size is None else (self.size, self.size)
        inner_height, inner_width = (round(scale * side) for side in sides)
        if (inner_height, inner_width) != (height, width):
            inputs = functional.interpolate(inputs, (inner_height, inner_width), mode="bilinear")
        padding = (0, -inner_width % self.multiple, 0, -inner_height % self.multiple)
        if any(padding):
            inputs = functional.pad(inputs, padding, mode="replicate")
        logits: torch.Tensor = self.model(inputs)[..., :inner_height, :inner_width]
        if (inner_height, inner_width) != (height, width):
            logits = functional.interpolate(logits, (height, width), mode="bilinear")
        return logits[:, 0].float()


def build_model(recipe: Recipe, num_channels: int) -> Segmenter:
    """Build the recipe's network with random weights (the caller has seeded torch).

    Raises:
        RecipeError: smp has no such architecture or encoder, or they do not go together.
    """
    section = recipe.model
    require_known(section)
    smp = _import_smp()
    options = {"decoder_channels": section.decoder_channels} if section.architecture.lower() in _PYRAMIDS else {}
    try:
        model = smp.create_model(
            section.architecture,
            encoder_name=section.encoder,
            encoder_depth=section.encoder_depth,
            encoder_weights=None,
            in_channels=num_channels,
            classes=1,
            **options,
        )
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(
            f"model.architecture = '{section.architecture}' with model.encoder = '{section.encoder}' cannot be built: "
            f"{error}; choose another encoder or depth"
        ) from error
    return Segmenter(model, recipe.data.size, 2**section.encoder_depth)


def smp_names() -> dict[str, list[str]]:
    """Return the architectures and encoders of the installed smp."""
    smp = _import_smp()
    return {
        "architectures": [name for name, value in vars(smp).items() if _is_architecture(value)],
        "encoders": smp.encoders.get_encoder_names(),
    }


def _import_smp() -> Any:
    """Import smp without the wandb that timm would import with it (1.4 s; training must not depend on it)."""
    absent = "wandb" not in sys.modules
    if absent:
        sys.modules["wandb"] = None  # type: ignore[assignment]
    try:
        import segmentation_models_pytorch
    finally:
        if absent:
            del sys.modules["wandb"]
    return segmentation_models_pytorch


_PYRAMIDS = {"unet", "unetplusplus", "manet", "linknet"}
"""Architectures whose decoder takes one number of channels a stage."""


def _is_architecture(value: object) -> bool:
    return (
        isinstance(value, type) and issubclass(value, nn.Module) and value.__module__.startswith("segmentation_models")
    )


def summary(model: nn.Module, input_shape: tuple[int, ...]) -> str:
    """Return torchinfo's table of a model, with input and output shapes, parameters and multiply-adds."""
    from torchinfo import summary as torchinfo_summary

    with warnings.catch_warnings():
        # torchinfo 1.8 reads TypedStorage, which torch calls deprecated
        warnings.simplefilter("ignore", UserWarning)
        table = torchinfo_summary(
            model, input_size=input_shape, depth=3, verbose=0, col_names=("input_size", "output_size", "num_params")
        )
    return str(table)
