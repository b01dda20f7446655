"""The data in a recipe: records, input channels, crops and pseudo-labels."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from contrails.recipe.base import Section


class PseudoSection(Section):
    """Pseudo-labels for training, made by `contrails predict --format pseudo`."""

    folder: Path = Field(
        description="folder with one dataset file per fold; fold k trains only with the file of fold k"
    )
    run: str = Field(description="run that made them; the file of fold k was predicted by the member of fold k")
    weight: float = Field(1.0, gt=0, description="weight of a pseudo-labelled record in the loss; labelled ones have 1")


class DataSection(Section):
    """The data of a training."""

    dataset: Path = Field(description="dataset file, made by contrails prepare")
    filelist: Path = Field(description="file list with the fold of every record, made by contrails split")
    positives_only: bool = Field(
        False,
        description="train only on records with a positive pixel, as the second of two stages; validate on all records",
    )
    exclude: Path | None = Field(
        None, description="list of records not to train on, made by contrails data audit; empty: no such list"
    )
    pseudo: tuple[PseudoSection, ...] = Field(
        (), description="pseudo-labels to add to training: tables with folder, run and weight"
    )
    frames: tuple[int, ...] = Field((), description="frames given to the model; empty: the labelled frame")
    composite: str | tuple[str, ...] = Field(
        "ash",
        description="input channels: ash, ash_unclipped, split_window, bands, expressions like b14-b15, or a list",
    )
    normalise: Literal["none", "mean_std", "min_max", "percentiles", "per_image", "imagenet"] = Field(
        "none",
        description="normalisation of each channel; mean_std, min_max and percentiles (1 to 99) use the training split",
    )
    crop: int | None = Field(
        None, ge=32, description="side of random training windows, in pixels; empty: the whole record"
    )
    crop_positive: float = Field(
        0.0, ge=0, le=1, description="probability that a window is drawn so that it holds a positive pixel"
    )
    residency: Literal["auto", "mmap", "ram"] = Field(
        "auto", description="mmap: map the dataset file; ram: copy it to RAM once per job; auto: choose"
    )
    size: int | None = Field(
        None, ge=32, description="side of the model's input, in pixels; empty: the size of the records"
    )
    target_name: str = Field(
        "",
        description="name of what the masks show, for reports, such as cell membrane; empty: the name in the dataset",
    )
    limit: int = Field(
        0, ge=0, description="use at most this many training and this many validation records, for debugging; 0: all"
    )
    overfit: int = Field(0, ge=0, description="train and validate on the same N records, positive ones first; 0: off")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.composite == ():
            raise ValueError("composite: expected a name or at least one expression, found none")
        if self.crop is not None and self.size is not None:
            raise ValueError(
                "crop and size exclude each other: training windows would be enlarged more than validation records; "
                "leave one of them empty"
            )
        if self.overfit and self.pseudo:
            raise ValueError(
                "overfit and pseudo exclude each other: overfit trains on the records that it validates on; leave one "
                "of them out"
            )
        if self.crop_positive and self.crop is None:
            raise ValueError(f"crop_positive = {self.crop_positive} needs a crop, such as crop = 128")
        return self
