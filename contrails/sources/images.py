"""The layout `images-rle`: a folder of images and a table of their masks.

`ROOT/<split>/` holds one image file per record (PNG, JPEG, DICOM or another format of `contrails.sources.rasters`), in
folders of any depth; the name without the ending is the id. `ROOT/<split>.csv` holds ids and run-length encodings in
the format of the convention. Records of the split test without this table are unlabelled; their ids are then written as
in `ROOT/sample_submission.csv`, if it exists. Images of different sizes are padded to the largest.
"""

import shlex
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from contrails.dataset.layout import Header
from contrails.dataset.pack import Arrays, Plan, labelled_tests
from contrails.dataset.rle import Convention, decode
from contrails.dataset.rle_tables import Labels, ending_of, read_labels
from contrails.dataset.store import Placement, Scene
from contrails.errors import DataError
from contrails.progress import bar
from contrails.sources.groups import USUAL, Grouping
from contrails.sources.radiometry import Span, packed_integers
from contrails.sources.rasters import ENDINGS, Raster, describe, read
from contrails.sources.spans import choose_values
from contrails.sources.tiles import packed
from contrails.sources.walk import files_below


@dataclass(frozen=True)
class ImageRecord:
    """An image and the encodings of its mask; None if the image is not in the table."""

    raster: Raster
    masks: tuple[str, ...] | None
    convention: Convention


def make_plan(
    root: Path,
    split: str,
    convention: Convention,
    span: Span | None = None,
    grouping: Grouping = USUAL,
    *,
    labelled: bool = True,
    least: tuple[int, int] = (0, 0),
    target_name: str = "",
) -> Plan[ImageRecord]:
    """Return the plan for the images of a split and their masks.

    Args:
        root: folder with one folder of images per split.
        split: name of the split.
        convention: how masks are written in the table.
        span: smallest and largest value to pack; None to keep counts, or to find it from the images.
        grouping: rule for groups; by default images of one DICOM patient are a group.
        labelled: whether to read a table.
        least: smallest height and width to pad images to.
        target_name: what the masks show; empty for the name of their class.

    Raises:
        DataError: no image, a duplicate id, images of different types or bands, or a table that does not fit.
    """
    paths, warnings = _find(root / split)
    labels = _read_table(root, split, convention, paths) if labelled else Labels({}, convention.ending)
    convention = replace(convention, ending=labels.ending)
    with bar("headers", len(paths)) as advance:
        rasters = []
        for path in paths.values():
            rasters.append(describe(path))
            advance(1)
    choice = choose_values(rasters, rasters, (), span)
    names = {name: path.relative_to(root / split).with_suffix("").as_posix() for name, path in paths.items()}
    patients = {name: raster.patient or name for name, raster in zip(paths, rasters, strict=True)}
    groups, said = grouping.groups(names, patients)
    called = shlex.join([f"--target-name={target_name}"]) if target_name else ""
    header = Header(
        split=split,
        band_names=rasters[0].band_names,
        frames=(0,),
        size=(
            max(least[0], *(raster.height for raster in rasters)),
            max(least[1], *(raster.width for raster in rasters)),
        ),
        with_marks=False,
        record_ids=tuple(paths),
        groups=tuple(groups.values()),
        timestamps=(np.nan,) * len(paths),
        values=choice.values,
        source="images and a table of run-length encodings",
        options=" ".join(filter(None, ("--layout images-rle", choice.option, shlex.join(grouping.options()), called))),
        convention=convention,
        scenes=tuple(
            Scene(name, raster.height, raster.width, raster.crs, raster.transform, control=raster.control)
            for name, raster in zip(paths, rasters, strict=True)
        ),
        placements=tuple(Placement(row, 0, 0, raster.height, raster.width) for row, raster in enumerate(rasters)),
    )
    records = tuple(
        ImageRecord(raster, labels.masks.get(name), convention) for name, raster in zip(paths, rasters, strict=True)
    )
    warnings += labels.warnings + choice.warnings
    warnings += labelled_tests(split, sum(record.masks is not None for record in records), len(records))
    notes = choice.notes if split == "test" else (*choice.notes, said)  # test images are not assigned to folds
    return Plan(str(root.resolve()), header, records, read_image, warnings, notes)


def read_image(header: Header, record: ImageRecord) -> tuple[Arrays, int]:
    """Return an image's row of each array, and 1 if it is labelled, else 0.

    Raises:
        DataError: the image is damaged, or its mask does not decode.
    """
    raster = record.raster
    shape = (raster.height, raster.width)
    bands, valid = packed_integers(*read(raster.path, (0, 0, *shape)), raster, header.values)
    positive: np.ndarray | None = None
    if record.masks is not None:
        positive = np.zeros(shape, bool)
        for text in record.masks:
            try:
                positive |= decode(text, shape, record.convention)
            except DataError as error:
                raise DataError(
                    f"the mask of {raster.path.stem}: {error}, for an image of {shape[0]} x {shape[1]} pixels; check "
                    "--rle-starts and --rle-order, or correct the row of the table"
                ) from error
    return packed(header, bands, valid, positive)


def _read_table(root: Path, split: str, convention: Convention, known: Collection[str]) -> Labels:
    """Return the masks of a split, with a warning about images that have none."""
    table, sample = root / f"{split}.csv", root / "sample_submission.csv"
    if split == "test" and not table.is_file():
        return Labels({}, ending_of(sample, convention, known) if sample.is_file() else "")
    labels = read_labels(table, convention, known)
    if unlabelled := [name for name in known if name not in labels.masks]:
        warning = (
            f"{len(unlabelled)} of {len(known)} images are not in {table} (first: {unlabelled[0]}): they are packed "
            "without a label, so no fold trains on them"
        )
        return replace(labels, warnings=(*labels.warnings, warning))
    return labels


def _find(folder: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return the images of a folder by id, sorted, and warnings about other files."""
    if not folder.is_dir():
        raise DataError(f"expected the images in {folder}, found no such folder; check RAW and --split")
    found: dict[str, Path] = {}
    below = files_below(folder, ENDINGS)
    for path in below.paths:
        if path.stem in found:
            raise DataError(
                f"expected one image per id, found two of {path.stem}: {found[path.stem]} and {path}; remove one"
            )
        found[path.stem] = path
    if not found:
        raise DataError(f"expected image files in {folder} ({', '.join(ENDINGS)}), found none; check RAW and --split")
    return dict(sorted(found.items())), below.warnings()
