"""Random changes of training samples in a recipe: a probability each, and how strong they are.

The labels follow; see `contrails.inputs.augment` for what each does.
"""

from typing import Literal

from pydantic import Field

from contrails.recipe.base import Section


class Kind(Section):
    """What all kinds have in common."""

    probability: float = Field(0.0, ge=0, le=1, description="chance of a sample to be changed so; 0: off")


class AffineSection(Kind):
    """A rotation, change of size, shear and shift."""

    rotate_deg: float = Field(15.0, ge=0, le=180, description="largest rotation, either way")
    scale: float = Field(0.1, ge=0, lt=1, description="largest change of size, as a share, either way")
    shear_deg: float = Field(0.0, ge=0, le=45, description="largest shear, either way")
    shift: float = Field(0.05, ge=0, le=0.5, description="largest shift, as a share of the side, either way")


class GridDistortionSection(Kind):
    """A smooth displacement."""

    cells: int = Field(4, ge=2, le=16, description="cells of the grid along a side; its nodes are moved")
    strength: float = Field(0.2, gt=0, le=0.5, description="largest displacement of a node, as a share of a cell")


class ResizedCropSection(Kind):
    """A window, enlarged to the whole."""

    smallest: float = Field(0.5, gt=0, le=1, description="smallest share of the area that the window has")
    ratio: float = Field(1.2, ge=1, le=4, description="largest ratio of its sides, either way")


class BrightnessContrastSection(Kind):
    """Another level and spread of the channels."""

    brightness: float = Field(0.1, ge=0, description="largest number added to all channels, either way")
    contrast: float = Field(0.1, ge=0, lt=1, description="largest change of the spread, as a share, either way")


class NoiseSection(Kind):
    """Noise that multiplies all bands of a pixel with one factor, in their units, before channels are made of them.

    Differences of bands keep their sign, and an index such as (nir - red) / (nir + red) does not change.
    """

    strength: float = Field(0.02, gt=0, lt=1, description="largest standard deviation of the factor around 1")


class BlurSection(Kind):
    """Gaussian blur."""

    sigma_px: float = Field(1.0, gt=0, le=8, description="largest standard deviation, in pixels")


class CutoutSection(Kind):
    """Rectangles of one value, ignored in the label."""

    holes: int = Field(4, ge=1, le=64, description="rectangles a sample")
    size: float = Field(0.2, gt=0, le=1, description="their largest side, as a share of the sample's")


class MixupSection(Kind):
    """The weighted mean of two samples."""

    alpha: float = Field(0.4, gt=0, description="of the Beta(alpha, alpha) distribution that weights are drawn from")
    target: Literal["mean", "or"] = Field("mean", description="mixed likewise, or the larger of the two")


class CutmixSection(Kind):
    """A rectangle of another sample."""

    alpha: float = Field(1.0, gt=0, description="of the Beta(alpha, alpha) distribution of the rectangle's area")


class MosaicSection(Kind):
    """Four quarters of four samples."""


class CopyPasteSection(Kind):
    """Contrails of a positive sample in a negative one."""

    margin_px: int = Field(1, ge=0, le=16, description="pixels around a contrail that come along")


class TimeReversalSection(Kind):
    """The frames in reversed order."""


class FrameDropoutSection(Kind):
    """One frame replaced by its neighbour on the side of the labelled one, which itself stays."""


class AugmentSection(Section):
    """Random changes of a training sample, drawn anew for each."""

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
        """The kinds that are switched on besides the dihedral moves, by name, in the order in which they are made."""
        return {name: kind for name, kind in self if isinstance(kind, Kind) and kind.probability}


MIXING = ("copy_paste", "mosaic", "cutmix", "mixup")
"""Kinds that take from other samples of the batch."""

NUM_DRAWS = 8
"""Numbers drawn for every sample and kind; the first decides whether the sample gets it."""

TEMPORAL = ("time_reversal", "frame_dropout")
"""Kinds that need several frames."""
