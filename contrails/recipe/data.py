"""The data in a recipe: the records, what the model sees of them, and what else is trained on."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from contrails.recipe.base import Section


class PseudoSection(Section):
    """Pseudo-labels that are mixed into training, made by contrails predict --format pseudo."""

    folder: Path = Field(description="folder with a dataset file a fold; fold k trains with that of fold k alone")
    run: str = Field(description="run whose members made them: fold k's file by fold k's member")
    weight: float = Field(1.0, gt=0, description="how much one of them counts in the loss, a labelled record being 1")


class DataSection(Section):
    """What is trained on."""

    dataset: Path = Field(description="dataset file made by contrails prepare")
    filelist: Path = Field(description="fold of every record, made by contrails split")
    positives_only: bool = Field(
        False, description="train on records with a positive pixel alone, as the second of two stages; validate on all"
    )
    exclude: Path | None = Field(
        None, description="records that are not trained on, made by contrails data audit; empty: none"
    )
    pseudo: tuple[PseudoSection, ...] = Field(
        (), description="pseudo-labels to mix in: tables with folder, run and weight"
    )
    frames: tuple[int, ...] = Field((), description="frames given to the model; empty: the labelled one")
    composite: str | tuple[str, ...] = Field(
        "ash",
        description="input channels: ash, ash_unclipped, split_window, bands, expressions like b14-b15, or a list",
    )
    normalise: Literal["none", "mean_std", "min_max", "percentiles", "per_image", "imagenet"] = Field(
        "none",
        description="what maps each channel then; mean_std, min_max, percentiles (1 to 99) are of the training split",
    )
    crop: int | None = Field(None, ge=32, description="side of a random window to train on, in pixels; empty: all")
    crop_positive: float = Field(0.0, ge=0, le=1, description="chance that a window is asked to hold a positive pixel")
    residency: Literal["auto", "mmap", "ram"] = Field(
        "auto", description="where the data lie in training: mapped from the file, or copied to RAM once a job"
    )
    size: int | None = Field(None, ge=32, description="side of the model's input in pixels; empty: the records' own")
    target_name: str = Field(
        "",
        description="what the masks show, as reports call it, such as cell membrane; empty: as the dataset says",
    )
    limit: int = Field(0, ge=0, description="use at most this many records a side, for debugging; 0: all")
    overfit: int = Field(0, ge=0, description="train and validate on the same N records, positive ones first; 0: off")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.composite == ():
            raise ValueError("composite is empty, expected a name or at least one expression")
        if self.crop is not None and self.size is not None:
            raise ValueError("crop and size exclude each other: windows would be enlarged more than whole records")
        if self.overfit and self.pseudo:
            raise ValueError(
                "overfit and pseudo exclude each other: overfit trains on the records that it validates on"
            )
        if self.crop_positive and self.crop is None:
            raise ValueError(f"crop_positive = {self.crop_positive} needs a crop, such as crop = 128")
        return self
