"""Raw data as the input of an ensemble, prepared with the options of its training data unless others are given.

A folder of GOES records, scenes or images is packed into a temporary dataset file beside the output. A single scene is
not packed; this module only decides how it is tiled.
"""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contrails.aggregate.ensemble import Ensemble
from contrails.aggregate.members.inputs import Inputs
from contrails.aggregate.output.scene import Tiling, require_bands
from contrails.dataset.layout import read_options
from contrails.dataset.pack import Plan, pack
from contrails.dataset.store import Dataset, open_dataset
from contrails.errors import DataError
from contrails.locks import sole_writer
from contrails.progress import tell
from contrails.sources import goes, images, scenes
from contrails.sources.rasters import Raster
from contrails.sources.spans import read_span
from contrails.sources.tiles import OVERLAP, TILE, Blend, usual_overlap
from contrails.sources.walk import folders_in

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Given:
    """The options of the input that the user gave; others are those of the training data.

    `bands` names the bands of scenes in order; `scenes` is the pattern of their paths.
    """

    tile: int | None = None
    overlap: int | None = None
    bands: tuple[str, ...] = ()
    scenes: str = ""


def layout_of(ensemble: Ensemble) -> str:
    """Return the layout of the training data."""
    return read_options(ensemble.inputs.options).get("layout", "goes") if ensemble.inputs else "goes"


def bands_of(ensemble: Ensemble, given: Given) -> tuple[str, ...]:
    """Return the names of a scene's bands; empty if they must be in its files."""
    trained = _scene_options(ensemble)
    return given.bands or (trained.bands if trained else ())


def tiling_of(ensemble: Ensemble, raster: Raster, given: Given, blend: Blend) -> Tiling:
    """Return how a scene is tiled: as the training data; if those were whole images, as a single tile."""
    trained = _scene_options(ensemble)
    if trained is None and layout_of(ensemble) == "images-rle" and given.tile is None:
        assert ensemble.inputs is not None
        return Tiling(_padded_size(ensemble.inputs, raster.height, raster.width), 0, blend)
    tile, overlap = _tiling(trained, given)
    return Tiling((tile, tile), overlap, blend)


def _tiling(trained: scenes.SceneOptions | None, given: Given) -> tuple[int, int]:
    """Return side and overlap of tiles in pixels: as given, as in training, or the defaults; print them and why."""
    tile = given.tile or (trained.tile if trained else TILE)
    overlap = usual_overlap(tile, trained.overlap if trained else OVERLAP) if given.overlap is None else given.overlap
    if trained is not None and (tile, overlap) == (trained.tile, trained.overlap):
        why = ", as in training"
    elif trained is not None:
        why = f"; in training {trained.tile} and {trained.overlap}"
    else:
        why = "; the members were not trained on tiles"
    tell(f"tiles of {tile} x {tile} pixels that overlap by {overlap}{why} (--tile, --overlap)")
    return tile, overlap


@contextmanager
def opened(ensemble: Ensemble, source: Path, out: Path, given: Given) -> Iterator[Dataset]:
    """Open a dataset file, or pack a folder of raw data into one that lasts as long as this context.

    Raises:
        DataError: the file or the folder is not as expected.
        RunError: another process predicts into `out`.
    """
    if not source.is_dir():
        yield open_dataset(source)
        return
    plan = _plan(ensemble, source.resolve(), given)
    for warning in plan.warnings:
        log.warning("%s", warning)
    folder, lock = out.with_name(f".{out.name}.input"), out.with_name(f".{out.name}.input.lock")
    busy = f"another process predicts into {out}; wait for it, or stop it, then run the same command again"
    packed = folder / f"{source.resolve().name}.h5"
    with sole_writer(lock, busy):
        try:
            shutil.rmtree(folder, ignore_errors=True)  # left by a killed process; its raw data may have changed
            pack(replace(plan, warnings=()), packed, 1)
            yield open_dataset(packed)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock.unlink(missing_ok=True)


def _plan(ensemble: Ensemble, folder: Path, given: Given) -> Plan[Any]:
    """Return the plan that packs a folder without labels, with the options of the training data."""
    layout, inputs = layout_of(ensemble), ensemble.inputs
    if layout == "goes":
        return _plan_goes(ensemble, folder)
    assert inputs is not None
    if layout == "images-rle":
        span = read_options(inputs.options).get("range")
        plan: Plan[Any] = images.make_plan(
            *(folder.parent, folder.name, inputs.convention),
            span=read_span(span) if span else None,
            labelled=False,
            least=inputs.size,
        )
        _padded_size(inputs, *plan.header.size)
        return _as_test(plan)
    trained = _scene_options(ensemble)
    assert trained is not None
    tile, overlap = _tiling(trained, given)
    options = replace(
        trained,
        tile=tile,
        overlap=overlap,
        scenes=given.scenes or _pattern(folder, trained.scenes),
        bands=bands_of(ensemble, given),
        masks="",
    )
    plan = scenes.make_plan(folder, "test", options)
    require_bands(ensemble, folder, plan.header.band_names)
    return plan


def _plan_goes(ensemble: Ensemble, folder: Path) -> Plan[Any]:
    bands, frames = ensemble.needs()
    numbers = [int(band.removeprefix("b")) for band in bands if band.removeprefix("b").isdecimal()]
    if len(numbers) < len(bands):
        raise DataError(
            f"{folder}: expected an ensemble that records how its training data were prepared, found one that only "
            f"names its bands ({', '.join(bands)}); make it again with `contrails aggregate RUN`, or give a dataset "
            "file"
        )
    plan = goes.make_plan(folder.parent, folder.name, numbers, frames)
    return _as_test(replace(plan, warnings=folders_in(folder).warnings()))  # warnings about folds do not apply here


def _as_test(plan: Plan[Any]) -> Plan[Any]:
    """Return a plan that needs no labels."""
    return replace(plan, header=replace(plan.header, split="test"))


def _scene_options(ensemble: Ensemble) -> scenes.SceneOptions | None:
    """Return how the scenes of the training data were tiled; None if they were not scenes."""
    inputs = ensemble.inputs
    return scenes.SceneOptions.parse(inputs.options) if inputs and layout_of(ensemble) == "scenes" else None


def _pattern(folder: Path, trained: str) -> str:
    """Return the pattern of the training data if the folder matches it, else that of files in the folder itself."""
    where = trained.partition("{")[0].rpartition("/")[0]
    return trained if "{band}" in trained or (where and (folder / where).is_dir()) else "{scene}"


def _padded_size(inputs: Inputs, height: int, width: int) -> tuple[int, int]:
    """Return the size that an image is padded to: that of the training images, or its own if it is larger."""
    size = max(height, inputs.size[0]), max(width, inputs.size[1])
    if size != inputs.size:
        log.warning(
            "images of %d x %d pixels are larger than the %d x %d of the training images: objects may appear at "
            "another size",
            *(height, width, *inputs.size),
        )
    return size
