"""Building of a network from a recipe: an smp architecture for any size and number of frames."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from safetensors.torch import load_file
from torch import nn

from contrails.errors import RecipeError
from contrails.models.adjust import adjust_decoder, adjust_encoder, adjust_new_layers
from contrails.models.library import smp
from contrails.models.names import decoder_channels, find_encoder, require_known
from contrails.models.network import Network
from contrails.models.segmenter import Segmenter
from contrails.models.sizes import padded, panel_grid
from contrails.models.temporal import Cnn3d, FrameMerge
from contrails.recipe.model import ModelSection
from contrails.recipe.recipe import Recipe

_FAILURES = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
"""Errors that smp and timm raise for combinations that do not work."""


def build_model(recipe: Recipe, num_channels: int, label: int = 0, pretrained: Path | None = None) -> Segmenter:
    """Build the recipe's network; the caller must have seeded torch.

    Args:
        recipe: the recipe.
        num_channels: input channels: of one frame if frames are a separate axis, else of all frames.
        label: position of the labelled frame among the recipe's frames.
        pretrained: file with the encoder's weights; None for random weights.

    Raises:
        RecipeError: an unknown architecture, encoder or option, or a combination that does not work.
    """
    require_known(recipe)
    section, temporal, num_frames = recipe.model, recipe.model.temporal, len(recipe.data.frames)
    smp.encoders.encoders.setdefault("cnn3d", _CNN3D)
    try:
        parts = _smp_model(recipe, num_channels, pretrained)
    except _FAILURES as error:
        raise RecipeError(
            f"expected a model that can be built, found model.architecture = '{section.architecture}' with "
            f"model.encoder = '{section.encoder}': {error}; choose another encoder, depth or option"
        ) from error
    if isinstance(parts.encoder, Cnn3d):
        parts.encoder.label = label
    adjust_encoder(parts.encoder, section)
    merge = None
    if temporal.merges_features:
        merge = FrameMerge(temporal, parts.encoder.out_channels, num_frames, label)
    if section.task == "segment":
        adjust_decoder(parts.decoder, parts.segmentation_head, section)
    network = Network(section, parts, merge, _aux_channels(section), gate=recipe.loss.gate)
    for name, module in network.named_children():
        if name != "encoder":
            adjust_new_layers(module, section)
    multiple = math.lcm(2**section.encoder_depth, parts.encoder.output_stride)
    return Segmenter(network, recipe.data.size, multiple, label if temporal.merge == "panels" else None)


_CNN3D = {
    "encoder": Cnn3d,
    "pretrained_settings": {},
    "params": {"out_channels": [3, 16, 32, 64, 128, 256]},
}
"""The entry of cnn3d, added to smp's table of encoders."""


def _smp_model(recipe: Recipe, num_channels: int, pretrained: Path | None) -> Any:
    """Return the smp model with pretrained weights; for a classifier only its encoder."""
    section, encoder = recipe.model, find_encoder(recipe.model.encoder)
    options: dict[str, Any] = dict(section.encoder_options)
    if encoder.fixed and "img_size" in encoder.options and recipe.data.size is not None:
        rows, columns = panel_grid(len(recipe.data.frames)) if section.temporal.merge == "panels" else (1, 1)
        side = padded(section, recipe.data.size)
        options.setdefault("img_size", (rows * side, columns * side))
    from_timm = pretrained is not None and encoder.is_timm
    if from_timm:  # timm maps the names and adapts the first convolution to the number of channels
        options["pretrained_cfg_overlay"] = {"file": str(pretrained), "hf_hub_id": None}
    weights = True if from_timm else None
    if section.task == "classify":
        model: Any = SimpleNamespace(
            encoder=smp.encoders.get_encoder(section.encoder, num_channels, section.encoder_depth, weights, **options)
        )
    else:
        channels = decoder_channels(section)
        model = smp.create_model(
            section.architecture,
            encoder_name=section.encoder,
            encoder_depth=section.encoder_depth,
            encoder_weights=weights,
            in_channels=num_channels,
            classes=section.logits,
            **({} if channels is None else {"decoder_channels": channels}),
            **section.decoder_options,
            **options,
        )
    if pretrained is not None and not from_timm:
        _load_smp_encoder(model.encoder, section, num_channels, pretrained)
    return model


def _load_smp_encoder(encoder: nn.Module, section: ModelSection, num_channels: int, path: Path) -> None:
    """Load weights for three channels; smp adapts the first convolution to `num_channels`."""
    like: Any = smp.encoders.get_encoder(section.encoder, depth=section.encoder_depth, weights=None)
    like.load_state_dict(load_file(path))
    like.set_in_channels(num_channels, pretrained=True)
    encoder.load_state_dict(like.state_dict())


def _aux_channels(section: ModelSection) -> list[int]:
    """Return the channels of the coarser decoder levels with deep supervision, from fine to coarse."""
    if not section.deep_supervision:
        return []
    channels = decoder_channels(section)
    assert isinstance(channels, tuple)
    return list(channels[-2::-1][: section.deep_supervision])
