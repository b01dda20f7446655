"""Predicting one scene of any size from file to file: tiles, prediction and blending strip by strip.

A row of tiles is read, predicted and blended at a time, so that memory grows with the width of a scene but not with its
height. The result is the same as preparing the scene, predicting its tiles and merging them. Finished strips are kept
until the file is complete, so that an interrupted prediction continues below the last one.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from contrails.aggregate.apply import LARGEST_WITH_STEPS, identity_of, predictors
from contrails.aggregate.decide.postprocess import apply
from contrails.aggregate.ensemble import Ensemble
from contrails.aggregate.members.inputs import values_for
from contrails.aggregate.members.prediction_files import PredictRows
from contrails.aggregate.members.untile import has_data, joined
from contrails.aggregate.output.noted import is_made, note
from contrails.aggregate.output.scene_files import Kind, WriteStrip, mask_values, scene_file
from contrails.aggregate.output.strips import StripFile
from contrails.dataset.layout import Header, Values
from contrails.dataset.store import Dataset, Placement, Scene
from contrails.errors import DataError, names_in
from contrails.files import remove_leftovers
from contrails.locks import sole_writer
from contrails.progress import bar
from contrails.sources.radiometry import packed_integers
from contrails.sources.rasters import Raster, bands_in_front, describe, read
from contrails.sources.tiles import OVERLAP, TILE, Blend, Blender, Strip, below, grid, packed, starts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tiling:
    """How a scene is tiled and merged: height and width of tiles, their overlap, and the blending window."""

    size: tuple[int, int] = (TILE, TILE)
    overlap: int = OVERLAP
    blend: Blend = "hann"


def predict_scene(
    ensemble: Ensemble,
    path: Path,
    out: Path,
    kind: Kind,
    tiling: Tiling,
    bands: Sequence[str],
    device: torch.device,
    *,
    force: bool = False,
) -> tuple[Scene, bool]:
    """Predict an image file into a GeoTIFF or a PNG file; `bands` names its bands if the file does not.

    Returns the scene, and False if the file was complete already. With `force`, another file is replaced.

    Raises:
        DataError: the file is damaged, lacks a band that the members use, or its units or values differ from those of
            the training data; or `out` exists and has another origin.
        RunError: another process predicts into `out`.
    """
    raster = _named(describe(path), bands)
    require_bands(ensemble, path, raster.band_names, bands_in_front(raster))
    values, *_ = [values_for(each.inputs, raster, each.bands(), each.again) for each in ensemble.stages()]
    scene = Scene(
        *(path.stem, raster.height, raster.width, raster.crs, raster.transform),
        control=raster.control,
    )
    about = identity_of(ensemble, device) | {"bands": raster.band_names, "cut": asdict(tiling), "scene": _stamp(path)}
    about["values"] = asdict(values)
    sides = zip((raster.height, raster.width), tiling.size, strict=True)
    about["grid"] = [starts(side, tile, tiling.overlap) for side, tile in sides]
    made_of = about | {"kind": kind, "threshold": ensemble.threshold}
    made_of |= {"steps": [asdict(step) for step in ensemble.steps]}
    if is_made(out, made_of, force=force):
        return scene, False
    kept = StripFile(out.with_name(f".{out.name}.strips"), raster.width, about)
    busy = f"another process predicts into {out}; wait for it, or stop it, then run the same command again"
    with sole_writer(kept.path, busy):
        remove_leftovers(out)
        try:
            with scene_file(out, scene, kind) as write:
                _write(ensemble, scene, kind, _all_strips(ensemble, raster, values, tiling, device, kept), write)
        except DataError:  # a repetition from the kept strips would fail again
            kept.path.unlink()
            raise
        note(out, made_of)
        kept.path.unlink()
    return scene, True


def require_bands(ensemble: Ensemble, path: Path, found: Sequence[str], hint: str = "") -> None:
    """Check that a scene has the bands that the members use; `hint` is appended to the message.

    Raises:
        DataError: it lacks a band.
    """
    needed, _ = ensemble.needs()
    if missing := sorted(set(needed) - set(found)):
        raise DataError(
            f"{path}: expected the bands {names_in(needed)}, found {names_in(found)} (no {names_in(missing)}); name "
            f"the bands in their order with --bands{hint}"
        )


def _write(ensemble: Ensemble, scene: Scene, kind: Kind, strips: Iterator[Strip], write: WriteStrip) -> None:
    if kind == "probabilities":
        for strip in strips:
            write(strip.row, strip.values)
    elif ensemble.steps and scene.height * scene.width <= LARGEST_WITH_STEPS:
        whole = joined(scene, list(strips))
        mask = apply(whole.probabilities, ensemble.threshold, ensemble.steps)
        write(0, mask_values(mask, whole.predicted, kind))
    else:
        if ensemble.steps:
            log.warning("%s is too large for post-processing: only the threshold is applied", scene.name)
        for strip in strips:
            write(strip.row, mask_values(apply(strip.values, ensemble.threshold, ()), strip.predicted, kind))


def _all_strips(
    ensemble: Ensemble, raster: Raster, values: Values, tiling: Tiling, device: torch.device, kept: StripFile
) -> Iterator[Strip]:
    row = 0
    for strip in kept.read():
        row = strip.row + len(strip.values)
        yield strip
    for strip in predict_strips(ensemble, raster, values, tiling, device, row):
        kept.keep(strip)
        yield strip


def predict_strips(
    ensemble: Ensemble, raster: Raster, values: Values, tiling: Tiling, device: torch.device, first: int = 0
) -> Iterator[Strip]:
    """Yield the blended probabilities of a scene from top to bottom, starting at the row `first`."""
    placements = grid(raster.height, raster.width, tiling.size, tiling.overlap)
    by_row: dict[int, list[Placement]] = {}
    for placement in placements if first < raster.height else ():
        if placement.row + tiling.size[0] > first:
            by_row.setdefault(placement.row, []).append(placement)
    blender = Blender(raster.height, raster.width, tiling.blend, min(by_row, default=raster.height))
    predict_on: Callable[[Dataset], PredictRows] | None = None
    left = sum(map(len, by_row.values()))
    with bar(f"tiles of {raster.path.name}", len(placements), done=len(placements) - left) as advance:
        for in_row in by_row.values():
            # made with a dataset of a single tile, since the function keeps its dataset in memory
            predict_on = predict_on or predictors(ensemble, _tiles(raster, values, in_row[:1], tiling.size), device)
            tiles = _tiles(raster, values, in_row, tiling.size)
            for rows, images in predict_on(tiles)(np.arange(len(in_row))):
                for row, image in zip(rows, images, strict=True):
                    yield from below(first, blender.add(in_row[row], image, has_data(tiles, row)))
                advance(len(rows))
            del tiles  # frees the memory before the next row is read
        yield from below(first, blender.close())


def _stamp(path: Path) -> list[int]:
    """Return size and time of a file, which change when it is rewritten; a digest would take as long as predicting."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _named(raster: Raster, bands: Sequence[str]) -> Raster:
    if bands and len(bands) != len(raster.band_names):
        raise DataError(
            f"{raster.path}: expected {len(bands)} bands, {names_in(bands)}, found {len(raster.band_names)}, "
            f"{names_in(raster.band_names)}; name all of them in their order with --bands{bands_in_front(raster)}"
        )
    return replace(raster, band_names=tuple(bands) or raster.band_names)


def _tiles(raster: Raster, values: Values, placements: Sequence[Placement], size: tuple[int, int]) -> Dataset:
    """Return a row of tiles as a dataset in memory."""
    top = placements[0].row
    header = Header(
        split="test",
        band_names=raster.band_names,
        frames=(0,),
        size=size,
        with_marks=False,
        record_ids=tuple(f"{raster.path.stem} at {place.row}, {place.column}" for place in placements),
        groups=(raster.path.stem,) * len(placements),
        timestamps=(np.nan,) * len(placements),
        values=values,
        source="",
    )
    bands, valid = packed_integers(*read(raster.path, (top, 0, placements[0].height, raster.width)), raster, values)
    arrays = {"bands": np.empty((len(placements), 1, len(bands), *size), bands.dtype)}
    arrays["votes"] = np.empty((len(placements), *size), np.uint8)
    for index, place in enumerate(placements):
        part = slice(place.column, place.column + place.width)
        for name, values_of_tile in packed(header, bands[..., part], valid[:, part], None)[0].items():
            arrays[name][index] = values_of_tile
    return Dataset(
        path=raster.path,
        bands=arrays["bands"],
        votes=arrays["votes"],
        marks=None,
        annotators=np.zeros(len(placements), np.uint8),
        record_ids=header.record_ids,
        groups=header.groups,
        timestamps=np.array(header.timestamps),
        digests={},
        band_names=header.band_names,
        frames=header.frames,
        label_frame=0,
        label_offset_px=(0.0, 0.0),
        scale_factor=values.scale_factor,
        add_offset=values.add_offset,
        split=header.split,
        units=values.units,
    )
