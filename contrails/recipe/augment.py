"""The augmentation in a recipe: a probability and a strength for each kind.

Labels are transformed with the images; `contrails.inputs.augment` describes each kind.
"""

from typing import Literal

from pydantic import Field

from contrails.recipe.base import Section


class Kind(Section):
    """Keys that all kinds of augmentation have."""

    probability: float = Field(
        0.0, ge=0, le=1, description="probability that this augmentation is applied to a sample; 0: off"
    )


class AffineSection(Kind):
    """A random rotation, scaling, shear and shift."""

    rotate_deg: float = Field(15.0, ge=0, le=180, description="largest rotation in either direction, in degrees")
    scale: float = Field(0.1, ge=0, lt=1, description="largest relative change of size, up or down")
    shear_deg: float = Field(0.0, ge=0, le=45, description="largest shear in either direction, in degrees")
    shift: float = Field(0.05, ge=0, le=0.5, description="largest shift in either direction, as a fraction of the side")


class GridDistortionSection(Kind):
    """A random smooth displacement."""

    cells: int = Field(4, ge=2, le=16, description="cells along a side of the grid whose nodes are displaced")
    strength: float = Field(0.2, gt=0, le=0.5, description="largest displacement of a node, as a fraction of a cell")


class ResizedCropSection(Kind):
    """A random window, enlarged to the full size."""

    smallest: float = Field(0.5, gt=0, le=1, description="smallest area of the window, as a fraction of the sample")
    ratio: float = Field(1.2, ge=1, le=4, description="largest ratio of the longer to the shorter side of the window")


class BrightnessContrastSection(Kind):
    """A random change of brightness and contrast."""

    brightness: float = Field(0.1, ge=0, description="largest value added to or subtracted from all channels")
    contrast: float = Field(0.1, ge=0, lt=1, description="largest relative change of the contrast, up or down")


class NoiseSection(Kind):
    """Noise that multiplies all bands of a pixel by one factor, before the channels are computed from the bands.

    It acts on physical units, so differences of bands keep their sign, and an index such as (nir - red) / (nir + red)
    does not change.
    """

    strength: float = Field(0.02, gt=0, lt=1, description="largest standard deviation of the factor around 1")


class BlurSection(Kind):
    """A Gaussian blur."""

    sigma_px: float = Field(1.0, gt=0, le=8, description="largest standard deviation, in pixels")


class CutoutSection(Kind):
    """Rectangles that are set to one value and ignored in the label."""

    holes: int = Field(4, ge=1, le=64, description="number of rectangles per sample")
    size: float = Field(0.2, gt=0, le=1, description="largest side of a rectangle, as a fraction of the sample's side")


class MixupSection(Kind):
    """The weighted mean of two samples."""

    alpha: float = Field(0.4, gt=0, description="alpha of the Beta(alpha, alpha) distribution of the weight")
    target: Literal["mean", "or"] = Field("mean", description="label: the weighted mean, or the larger of the two")


class CutmixSection(Kind):
    """A rectangle replaced by that of another sample."""

    alpha: float = Field(1.0, gt=0, description="alpha of the Beta(alpha, alpha) distribution of the rectangle's area")


class MosaicSection(Kind):
    """One sample put together from quarters of four samples."""


class CopyPasteSection(Kind):
    """Contrails of a positive sample pasted into a negative one."""

    margin_px: int = Field(1, ge=0, le=16, description="margin around a contrail that is pasted with it, in pixels")


class TimeReversalSection(Kind):
    """The frames in reverse order."""


class FrameDropoutSection(Kind):
    """One frame replaced by its neighbour towards the labelled frame, which is never replaced."""


class AugmentSection(Section):
    """Augmentation of training samples, with independent random numbers for each sample."""

    dihedral: float = Field(1.0, ge=0, le=1, description="probability of a random flip or rotation")
    noise: NoiseSection = NoiseSection()
    time_reversal: TimeReversalSection = TimeReversalSection()
    affine: AffineSection = AffineSection()
    grid_distortion: GridDistortionSection = GridDistortionSection()
    resized_crop: ResizedCropSection = ResizedCropSection()
    brightness_contrast: BrightnessContrastSection = BrightnessContrastSection()
    blur: BlurSection = BlurSection()
    frame_dropout: FrameDropoutSection = FrameDropoutSection()
    copy_paste: CopyPasteSection = CopyPasteSection()
    mosaic: MosaicSection = MosaicSection()
    cutmix: CutmixSection = CutmixSection()
    mixup: MixupSection = MixupSection()
    cutout: CutoutSection = CutoutSection()

    @property
    def kinds(self) -> dict[str, Kind]:
        """The enabled kinds except `dihedral`, by name, in the order in which they are applied."""
        return {name: kind for name, kind in self if isinstance(kind, Kind) and kind.probability}


MIXING = ("copy_paste", "mosaic", "cutmix", "mixup")
"""Kinds that combine a sample with others of its batch."""

NUM_DRAWS = 8
"""Random numbers per sample and kind; the first decides whether the kind is applied to the sample."""

TEMPORAL = ("time_reversal", "frame_dropout")
"""Kinds that need several frames."""
