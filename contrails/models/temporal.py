"""Merging of several frames: merged features (2.5D), panels of one image, or a small 3D encoder.

Frames are in the order of the recipe; the labelled frame has the position `label`. To merge features, one 2D encoder
runs on each frame, and its features are merged over time at the chosen levels. If the labelled frame's own feature is
concatenated, the merged feature has initial weight zero, so that training starts from the 2D model.
"""

from collections.abc import Sequence

import torch
from torch import nn

from contrails.models.sizes import panel_grid
from contrails.recipe.model import TemporalSection


class FrameMerge(nn.Module):
    """Merges the features of frames at some levels; at the others the labelled frame's own features are used."""

    def __init__(self, section: TemporalSection, channels: Sequence[int], num_frames: int, label: int) -> None:
        super().__init__()
        self.label, self.own = label, section.own
        levels = [level for level in section.levels or range(1, len(channels)) if channels[level]]
        self.merges = nn.ModuleDict({str(level): _merge(section, channels[level], num_frames) for level in levels})
        self.beside = nn.ModuleDict({str(level): _beside(channels[level]) for level in levels if section.own})

    def forward(self, features: Sequence[torch.Tensor], num_frames: int) -> list[torch.Tensor]:
        """Return one feature per level.

        Shape:
            features of (B * T, C, h, w), from fine to coarse, to features of (B, C, h, w).
        """
        merged = []
        for level, feature in enumerate(features):
            # B is computed, as -1 cannot be inferred for a level without channels (of some transformers)
            frames = feature.reshape(len(feature) // num_frames, num_frames, *feature.shape[1:])
            out, key = frames[:, self.label], str(level)
            if key in self.merges:
                new = self.merges[key](frames)
                out = self.beside[key](torch.cat([out, new], 1)) if self.own else new
            merged.append(out)
        return merged


def _merge(section: TemporalSection, channels: int, num_frames: int) -> nn.Module:
    if section.merge == "conv3d":
        return Conv3dMerge(channels, num_frames, section.layers)
    return RecurrentMerge(channels, lstm=section.merge == "lstm")


def _beside(channels: int) -> nn.Module:
    """Return a 1x1 convolution of two concatenated features, initialised to return the first one."""
    conv = nn.Conv2d(2 * channels, channels, 1)
    with torch.no_grad():
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class Conv3dMerge(nn.Sequential):
    """Conv3d layers with 3 x 3 x 3 kernels, the last one over all frames, each with batch norm and ReLU."""

    def __init__(self, channels: int, num_frames: int, num_layers: int) -> None:
        layers: list[nn.Module] = []
        for index in range(num_layers):
            last = index == num_layers - 1
            kernel, padding = ((num_frames, 3, 3), (0, 1, 1)) if last else ((3, 3, 3), (1, 1, 1))
            layers += [
                nn.Conv3d(channels, channels, kernel, padding=padding, bias=False),
                nn.BatchNorm3d(channels),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Merge (B, T, C, h, w) to (B, C, h, w)."""
        merged: torch.Tensor = super().forward(frames.transpose(1, 2))  # type: ignore[no-untyped-call]
        return merged.squeeze(2)


class RecurrentMerge(nn.Module):
    """A ConvGRU (Ballas et al. 2016) or ConvLSTM (Shi et al. 2015) over the frames, returning its last state."""

    def __init__(self, channels: int, *, lstm: bool) -> None:
        super().__init__()
        self.channels, self.lstm = channels, lstm
        self.gates = nn.Conv2d(2 * channels, (4 if lstm else 2) * channels, 3, padding=1)
        self.candidate = None if lstm else nn.Conv2d(2 * channels, channels, 3, padding=1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Merge (B, T, C, h, w) to (B, C, h, w)."""
        state = memory = torch.zeros_like(frames[:, 0])
        for frame in frames.unbind(1):
            gates = self.gates(torch.cat([frame, state], 1)).chunk(4 if self.lstm else 2, 1)
            if self.candidate is None:
                keep, take, give, new = gates
                memory = torch.sigmoid(keep) * memory + torch.sigmoid(take) * torch.tanh(new)
                state = torch.sigmoid(give) * torch.tanh(memory)
            else:
                reset, update = (torch.sigmoid(gate) for gate in gates)
                new = torch.tanh(self.candidate(torch.cat([frame, reset * state], 1)))
                state = torch.lerp(state, new, update)
        return state


class Cnn3d(nn.Module):
    """A small 3D encoder with smp's interface: stages of two Conv3d that halve the sides and keep all frames.

    It returns the features at the labelled frame, whose receptive field in time grows from stage to stage.
    """

    def __init__(self, out_channels: Sequence[int], depth: int = 5, output_stride: int = 32, label: int = 0) -> None:
        super().__init__()
        assert output_stride == 32
        self.out_channels, self.label = list(out_channels[: depth + 1]), label
        self.output_stride = 2**depth
        self.set_in_channels(self.out_channels[0])

    def set_in_channels(self, in_channels: int, pretrained: bool = False) -> None:
        """Build the stages for a number of channels per frame; smp calls this after construction."""
        assert not pretrained
        self.out_channels[0] = in_channels
        pairs = zip(self.out_channels, self.out_channels[1:], strict=False)
        self.stages = nn.ModuleList(
            nn.Sequential(*_conv3d(inside, outside, (1, 2, 2)), *_conv3d(outside, outside, (1, 1, 1)))
            for inside, outside in pairs
        )

    def forward(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """Return the features of frames (B, T, C, H, W), from fine to coarse, beginning with the labelled frame."""
        features = [frames[:, self.label]]
        volume = frames.transpose(1, 2)
        for stage in self.stages:
            volume = stage(volume)
            features.append(volume[:, :, self.label])
        return features


def _conv3d(inside: int, outside: int, stride: tuple[int, int, int]) -> list[nn.Module]:
    return [
        nn.Conv3d(inside, outside, 3, stride, padding=1, bias=False),
        nn.BatchNorm3d(outside),
        nn.ReLU(inplace=True),
    ]


def as_panels(frames: torch.Tensor) -> torch.Tensor:
    """Arrange frames as panels of one image, row by row.

    Shape:
        (B, T, C, H, W) to (B, C, rows * H, columns * W).
    """
    grid = frames.reshape(-1, *panel_grid(frames.shape[1]), *frames.shape[2:])  # (B, rows, columns, C, H, W)
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def panel_offset(panel: int, frames: torch.Tensor) -> tuple[int, int]:
    """Return the top and left pixel of a panel in the image of `as_panels`."""
    row, column = divmod(panel, panel_grid(frames.shape[1])[1])
    return row * frames.shape[-2], column * frames.shape[-1]
