"""All augmentation of a batch except the dihedral moves, in order. Noise acts earlier, on the bands."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from contrails.errors import RecipeError
from contrails.inputs.augment import geometry, intensity, mixing
from contrails.inputs.augment.samples import Samples
from contrails.inputs.transfer import to_device
from contrails.recipe.augment import AugmentSection

_GEOMETRIC = ("affine", "grid_distortion", "resized_crop")


@dataclass(frozen=True)
class Chain:
    """The augmentation of a dataset's batches.

    `offset_px` is the offset of the labels; `label_frame` is the position of the labelled frame among the model's
    frames, or that of the nearest one; `hard` rounds resampled targets to 0 and 1.
    """

    section: AugmentSection
    offset_px: tuple[float, float] = (0.0, 0.0)
    label_frame: int = 0
    hard: bool = False

    def apply(self, samples: Samples, draws: Mapping[str, np.ndarray]) -> Samples:
        """Return augmented samples.

        Shape:
            draws of each kind float64 (B, NUM_DRAWS) from 0 to 1, see `contrails.recipe.augment`.
        """
        makers: dict[str, Callable[[Samples, np.ndarray, np.ndarray], Samples]] = {
            "time_reversal": self._time_reversal,
            "brightness_contrast": self._brightness_contrast,
            "blur": self._blur,
            "frame_dropout": self._frame_dropout,
            "copy_paste": self._copy_paste,
            "mosaic": self._mosaic,
            "cutmix": self._cutmix,
            "mixup": self._mixup,
            "cutout": self._cutout,
        }
        moved = False
        for name in self.section.kinds:
            if name == "noise":  # already applied to the bands, see `band_factors`
                continue
            if name in _GEOMETRIC:
                samples, moved = samples if moved else self._moved(samples, draws), True
            elif len(chosen := self._chosen(name, draws)):
                indices = to_device(chosen, samples.target.device)
                samples = samples.replaced(indices, makers[name](samples, chosen, draws[name][chosen]))
        return samples

    def band_factors(
        self, draws: Mapping[str, np.ndarray], shape: tuple[int, int, int], device: torch.device
    ) -> torch.Tensor | None:
        """Return the factor by which noise multiplies all bands of each pixel; None without noise.

        Shape:
            shape (T, H, W), draws as for `apply`, to float32 (B, T, H, W).
        """
        if "noise" not in self.section.kinds or not len(chosen := self._chosen("noise", draws)):
            return None
        mine = draws["noise"][chosen]
        factors = torch.ones((len(draws["noise"]), *shape), device=device)
        factors[to_device(chosen, device)] = intensity.noise(shape, _seeds(mine), mine, self.section.noise, device)
        return factors

    def _chosen(self, name: str, draws: Mapping[str, np.ndarray]) -> np.ndarray:
        kind = self.section.kinds[name]
        return np.flatnonzero(draws[name][:, 0] < kind.probability)

    def _moved(self, samples: Samples, draws: Mapping[str, np.ndarray]) -> Samples:
        """Apply all geometric kinds in one resampling, so that images are interpolated only once."""
        section, (height, width) = self.section, samples.target.shape[-2:]
        kinds = [name for name in _GEOMETRIC if name in section.kinds]
        chosen = {name: self._chosen(name, draws) for name in kinds}
        some = np.unique(np.concatenate(list(chosen.values())))
        if not len(some):
            return samples
        matrices, nodes = np.tile(np.eye(3), (len(some), 1, 1)), None
        for name, mine in chosen.items():
            places, numbers = np.searchsorted(some, mine), draws[name][mine]
            if name == "affine":
                matrices[places] = geometry.affine_matrices(numbers, section.affine, height, width)
            elif name == "resized_crop":
                matrices[places] @= geometry.crop_matrices(numbers, section.resized_crop, height, width)
            elif len(mine):
                found = geometry.grid_nodes(_seeds(numbers), section.grid_distortion, height, width)
                nodes = np.zeros((len(some), *found.shape[1:]))
                nodes[places] = found
        indices = to_device(some, samples.target.device)
        moved = geometry.resample(samples.at(indices), matrices, nodes, self.offset_px, hard=self.hard)
        return samples.replaced(indices, moved)

    def _time_reversal(self, samples: Samples, chosen: np.ndarray, _draws: np.ndarray) -> Samples:
        own = _own(samples, chosen)
        return replace(own, images=own.images.flip(1))

    def _frame_dropout(self, samples: Samples, chosen: np.ndarray, draws: np.ndarray) -> Samples:
        own = _own(samples, chosen)
        count = own.images.shape[1]
        lost = np.floor(draws[:, 1] * (count - 1)).astype(np.int64)
        lost += lost >= self.label_frame
        order = np.tile(np.arange(count), (len(lost), 1))
        order[np.arange(len(lost)), lost] = lost + np.sign(self.label_frame - lost)
        rows = torch.arange(len(lost), device=own.images.device)[:, None]
        return replace(own, images=own.images[rows, to_device(order, own.images.device)])

    def _brightness_contrast(self, samples: Samples, chosen: np.ndarray, draws: np.ndarray) -> Samples:
        own = _own(samples, chosen)
        section = self.section.brightness_contrast
        return replace(own, images=intensity.brightness_contrast(own.images, draws, section))

    def _blur(self, samples: Samples, chosen: np.ndarray, draws: np.ndarray) -> Samples:
        own = _own(samples, chosen)
        return replace(own, images=intensity.blur(own.images, draws, self.section.blur))

    def _cutout(self, samples: Samples, chosen: np.ndarray, draws: np.ndarray) -> Samples:
        return intensity.cutout(_own(samples, chosen), _seeds(draws), self.section.cutout, self.offset_px)

    def _copy_paste(self, samples: Samples, chosen: np.ndarray, draws: np.ndarray) -> Samples:
        other = _partner(samples, chosen, draws[:, 1])
        return mixing.copy_paste(_own(samples, chosen), other, self.section.copy_paste, self.offset_px)

    def _mosaic(self, samples: Samples, chosen: np.ndarray, draws: np.ndarray) -> Samples:
        others = [_partner(samples, chosen, draws[:, column]) for column in (1, 2, 3)]
        return mixing.mosaic(_own(samples, chosen), others, draws[:, 4:6], self.offset_px)

    def _cutmix(self, samples: Samples, chosen: np.ndarray, draws: np.ndarray) -> Samples:
        other = _partner(samples, chosen, draws[:, 1])
        return mixing.cutmix(_own(samples, chosen), other, draws[:, 2:5], self.section.cutmix, self.offset_px)

    def _mixup(self, samples: Samples, chosen: np.ndarray, draws: np.ndarray) -> Samples:
        other = _partner(samples, chosen, draws[:, 1])
        return mixing.mixup(_own(samples, chosen), other, draws[:, 2], self.section.mixup)


def require_reversible(offsets: Sequence[int]) -> None:
    """Check that frames are symmetric around the labelled one; `offsets` are their distances from it, in frames.

    Raises:
        RecipeError: they are not, so that reversed frames would not fit the label.
    """
    if [-offset for offset in reversed(offsets)] != list(offsets):
        raise RecipeError(
            "augment.time_reversal needs frames that are symmetric around the labelled one, found data.frames at "
            f"distances {list(offsets)} from it; choose for example the one before, itself and the one after, or leave "
            "time_reversal out"
        )


def _own(samples: Samples, chosen: np.ndarray) -> Samples:
    return samples.at(to_device(chosen, samples.target.device))


def _partner(samples: Samples, chosen: np.ndarray, draws: np.ndarray) -> Samples:
    return _own(samples, mixing.partners(chosen, draws, len(samples.target)))


def _seeds(draws: np.ndarray) -> list[int]:
    """Return a seed for each sample, from its last draw, for kinds that need more than NUM_DRAWS random numbers."""
    return [int(draw * 2**53) for draw in draws[:, -1]]
