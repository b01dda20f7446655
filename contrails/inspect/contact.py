"""A sheet of augmented records: without augmentation, with each kind alone, and with all kinds as in training.

Each panel shows up to three input channels of the labelled frame, the outline of the label at its position on the image
(labels can be half a pixel off), and ignored pixels in grey.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from contrails.dataset.store import Dataset
from contrails.errors import DataError
from contrails.files import atomic_path
from contrails.inputs.batches import Batch, source_of
from contrails.inputs.normalise import fit_composite
from contrails.inputs.sampling import Sampler, require_crop_fits
from contrails.inspect.pictures import sample_rows
from contrails.recipe.augment import TEMPORAL, AugmentSection
from contrails.recipe.recipe import Recipe

_MOST_RECORDS = 6
_AS_TRAINED = 3
_PANEL_IN = 2.0
_OUTLINE, _IGNORED = "magenta", (0.5, 0.5, 0.5, 0.6)

_Line = tuple[str, torch.Tensor, Batch]
"""A row of the sheet: its name, images (B, C, H, W) of one frame, and their batch."""


def plot_augmentation(dataset: Dataset, recipe: Recipe, path: Path) -> int:
    """Write a sheet of up to 6 labelled records, the positive ones first; return how many it shows.

    Raises:
        DataError: no record has a label.
        RecipeError: the recipe does not fit the dataset.
    """
    labelled = np.flatnonzero(dataset.annotators)
    if not len(labelled):
        raise DataError(
            f"{dataset.path}: expected labelled records, found none; give a dataset file of training records"
        )
    rows = labelled[sample_rows(dataset.positive_pixels(labelled))[:_MOST_RECORDS]]
    require_crop_fits(recipe, dataset)
    lines = list(_lines(dataset, recipe, rows))
    size = (_PANEL_IN * len(rows), (_PANEL_IN + 0.25) * len(lines) + 0.4)
    figure = Figure(figsize=size, layout="compressed")
    figure.suptitle(f"{_OUTLINE}: target above 1/2; grey: ignored", fontsize=9)
    limits = _limits(lines[0][1])
    for panels, (name, images, batch) in zip(figure.subplots(len(lines), len(rows), squeeze=False), lines, strict=True):
        for index, panel in enumerate(panels):
            _draw(panel, images[index], batch, index, limits, dataset.label_offset_px)
        panels[0].set_ylabel(name, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=120, bbox_inches="tight")
    return len(rows)


def _lines(dataset: Dataset, recipe: Recipe, rows: np.ndarray) -> Iterator[_Line]:
    composite = fit_composite(dataset, recipe, rows)

    def line(name: str, section: AugmentSection, step: int = 0, *, first_frame: bool = False) -> _Line:
        train = recipe.train.model_copy(update={"batch_size": len(rows), "positive_share": None, "drop_last": True})
        changed = recipe.model_copy(update={"augment": section, "train": train})
        source = replace(source_of(dataset, changed, composite, torch.device("cpu")), time_axis=True)
        selection = Sampler(dataset, changed, rows, "sheet").selection(step)
        selection.rows[:] = rows  # each column shows one record
        batch = next(source.batches([selection]))
        distances = [abs(dataset.frames[frame] - dataset.label_frame) for frame in source.frames]
        return name, batch.inputs[:, 0 if first_frame else int(np.argmin(distances))], batch

    off, kinds = AugmentSection(dihedral=0), recipe.augment.kinds
    yield line("original", off)
    if recipe.augment.dihedral:
        yield line("dihedral", AugmentSection(dihedral=1))
    for name, kind in kinds.items():
        alone = off.model_copy(update={name: kind.model_copy(update={"probability": 1.0})})
        first = name in TEMPORAL
        yield line(f"{name}\n(first frame)" if first else name, alone, first_frame=first)
    for number in range(_AS_TRAINED):
        yield line("as trained on", recipe.augment, number)


def _limits(images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return the values drawn as black and as white in each of the first three channels."""
    values = images[:, :3].movedim(1, 0).flatten(1).numpy()
    low, high = np.percentile(values, (0.5, 99.5), axis=1)
    return low, np.maximum(high, low + 1e-6)


def _draw(
    panel: Axes,
    image: torch.Tensor,
    batch: Batch,
    index: int,
    limits: tuple[np.ndarray, np.ndarray],
    offset_px: tuple[float, float],
) -> None:
    low, high = limits
    shown = ((image[:3].movedim(0, -1).numpy() - low) / (high - low)).clip(0, 1)
    panel.imshow(shown if shown.shape[-1] == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=1)
    target, valid = batch.target[index].numpy(), batch.valid[index].numpy()
    height, width = target.shape
    down, right = offset_px
    hidden = np.zeros((height, width, 4))
    hidden[~valid] = _IGNORED
    panel.imshow(hidden, extent=(-0.5 - right, width - 0.5 - right, height - 0.5 - down, -0.5 - down))
    positive = target > 0.5
    if (positive & valid).any() and not (positive | ~valid).all():
        x, y = np.arange(width) - right, np.arange(height) - down
        panel.contour(x, y, np.ma.array(target, mask=~valid), levels=[0.5], colors=_OUTLINE, linewidths=0.6)
    panel.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
