"""Changes to an smp model for which smp has no keyword: norms, activations, dropout, upsampling, the stem's stride."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from contrails.models.library import timm
from contrails.recipe.model import ModelSection

_GROUP = 16
"""Channels per group of GroupNorm (Wu & He 2018 found this as good as 32 groups)."""

_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky_relu": partial(nn.LeakyReLU, 0.1, inplace=True),
    "silu": partial(nn.SiLU, inplace=True),
    "gelu": nn.GELU,
    "mish": partial(nn.Mish, inplace=True),
}


def adjust_encoder(encoder: nn.Module, section: ModelSection) -> None:
    """Apply the recipe's changes to an encoder in place; its weights are kept."""
    if section.stem_stride is not None:  # `names` has refused encoders whose first convolution has no stride
        stem = next(module for module in encoder.modules() if isinstance(module, nn.Conv2d))
        stem.stride = (section.stem_stride,) * 2
    if section.encoder_norm == "group":
        _replace(encoder, _BatchNorm, _group_norm)
    elif section.encoder_norm == "frozen":
        timm.layers.freeze_batch_norm_2d(encoder)


def has_batch_norm(model: nn.Module) -> bool:
    """Return whether a model has batch norms."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def adjust_decoder(decoder: nn.Module, head: nn.Module, section: ModelSection) -> None:
    """Apply the recipe's changes to a decoder and its head in place."""
    if section.skip_dropout:
        for block in _blocks(decoder):
            block.conv1.register_forward_pre_hook(partial(_drop, section.skip_dropout))
    if section.align_corners is not None:
        for module in (*decoder.modules(), *head.modules()):
            if isinstance(module, nn.Upsample) and module.mode == "bilinear":
                module.align_corners = section.align_corners
        if section.align_corners:
            for block in getattr(decoder, "blocks", ()):  # only of a Unet: `names` has refused others with blocks
                block.register_forward_pre_hook(_upsample_aligned)


def adjust_new_layers(module: nn.Module, section: ModelSection) -> None:
    """Replace norms and activations of layers that are not pretrained by those of the recipe."""
    if section.norm == "group":
        _replace(module, _BatchNorm, _group_norm)
    if section.activation != "relu":
        _replace(module, nn.ReLU, lambda _: _ACTIVATIONS[section.activation]())


def _blocks(decoder: nn.Module) -> list[Any]:
    """Return the blocks of a U-Net's decoder that merge a skip connection: all but the last."""
    blocks: Any = getattr(decoder, "blocks", ())
    return list(blocks.values() if isinstance(blocks, nn.ModuleDict) else blocks)[:-1]


def _drop(share: float, module: nn.Module, arguments: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    return (functional.dropout2d(arguments[0], share, module.training),)


def _upsample_aligned(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Upsample the input of a block to its output size with aligned corners, so that the block does not upsample."""
    feature, height, width, *others = arguments
    return functional.interpolate(feature, (height, width), mode="bilinear", align_corners=True), height, width, *others


def _replace(module: nn.Module, kind: type[nn.Module], make: Callable[[Any], nn.Module]) -> None:
    """Replace every module of type `kind` below `module` by the result of `make`."""
    for name, child in module.named_children():
        if isinstance(child, kind):
            setattr(module, name, make(child))
        else:
            _replace(child, kind, make)


def _group_norm(norm: Any) -> nn.Module:
    """Return a group norm with the scale and shift of a batch norm, and with the activation inside a timm norm."""
    group = nn.GroupNorm(norm.num_features // math.gcd(norm.num_features, _GROUP), norm.num_features)
    if norm.affine:
        group.load_state_dict({"weight": norm.weight, "bias": norm.bias})
    return nn.Sequential(group, norm.drop, norm.act) if isinstance(norm, timm.layers.BatchNormAct2d) else group
