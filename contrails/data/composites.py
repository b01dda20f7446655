"""Input channels as named, documented functions of the bands.

A composite is a list of channels; a channel is a weighted sum of bands in kelvin, mapped from (low, high) to (0, 1).
A weighted sum of packed integers is one as well, so kelvin are never made on the way (scale and offset enter the
weights). Names are checked without torch, so a login node can refuse a recipe that does not fit its data.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from contrails.errors import RecipeError, choices

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Channel:
    """`(sum of weight * band - low) / (high - low)`, bands in kelvin."""

    weights: Mapping[str, float]
    low: float
    high: float
    clip: bool = True


# Ash false colour as published with OpenContrails (Ng et al. 2023, after EUMETSAT's ash product).
_ASH = (
    Channel({"b15": 1, "b14": -1}, -4, 2),
    Channel({"b14": 1, "b11": -1}, -4, 5),
    Channel({"b14": 1}, 243, 303),
)
# Split-window difference alone: where thin ice shows most.
_SPLIT_WINDOW = (Channel({"b14": 1, "b15": -1}, -2, 4),)


def channels(name: str, band_names: Sequence[str]) -> tuple[Channel, ...]:
    """Return the channels of a composite: `ash`, `split_window`, or `bands` (every band from 200 K to 320 K).

    Raises:
        RecipeError: no composite has this name, or the dataset lacks a band that it needs.
    """
    known = {
        "ash": _ASH,
        "split_window": _SPLIT_WINDOW,
        "bands": tuple(Channel({band: 1}, 200, 320, clip=False) for band in band_names),
    }
    if name not in known:
        raise RecipeError(f"data.composite = '{name}': expected the name of a composite; {choices(name, known)}")
    missing = {band for channel in known[name] for band in channel.weights} - set(band_names)
    if missing:
        raise RecipeError(
            f"data.composite = '{name}' needs the bands {', '.join(sorted(missing))}, the dataset holds "
            f"{', '.join(band_names)}; prepare it again with --bands, or choose another composite"
        )
    return known[name]


def compose(
    packed: "torch.Tensor", channels: Sequence[Channel], band_names: Sequence[str], scale: float, offset: float
) -> "torch.Tensor":
    """Return the channels of packed bands, frame after frame.

    Args:
        packed: int16 bands.
        channels: what to make, see `channels`.
        band_names: name of each band along axis C.
        scale: kelvin a count.
        offset: kelvin of count zero.

    Shape:
        packed (B, T, C, H, W) to float32 (B, T * len(channels), H, W).
    """
    import torch

    # One conversion for all channels, then in place: intermediate tensors of this size cost more than the arithmetic.
    counts = packed.float()
    batch, frames, _, height, width = packed.shape
    out = torch.empty((batch, frames, len(channels), height, width), device=packed.device)
    for index, channel in enumerate(channels):
        target, span = out[:, :, index], channel.high - channel.low
        for position, (band, weight) in enumerate(channel.weights.items()):
            source, factor = counts[:, :, band_names.index(band)], weight * scale / span
            if position == 0:
                torch.mul(source, factor, out=target)
            else:
                target.add_(source, alpha=factor)
        target.add_((sum(channel.weights.values()) * offset - channel.low) / span)
        if channel.clip:
            target.clamp_(0, 1)
    return out.view(batch, frames * len(channels), height, width)
