"""The units and usual values of the training data per band, which other inputs must share.

Without this check, a network trained on kelvin would also accept 8-bit colours, and return wrong probabilities.
"""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from contrails.aggregate.members.untile import has_data
from contrails.dataset.layout import Values, read_options, values_in
from contrails.dataset.rle import DEFAULT, Convention
from contrails.dataset.store import Dataset
from contrails.errors import DataError
from contrails.sources.radiometry import is_fraction, needs_span, sample_of, usual_unit, values_of
from contrails.sources.rasters import Raster

_MOST_RECORDS = 64
_EVERY_PX = 2
_PERCENTILES = (0.1, 99.9)
_MARGIN = 1 / 8
"""How far other values may lie outside the usual range of a band, as a fraction of the width of that range."""

_MOST_ODD, _SOME_ODD = 0.5, 0.02
"""Fractions of a band's values that lie further outside: more than the first is an error, than the second a warning."""

_SMALL_PART, _NEARLY_ALL, _MANY_VALUES = 1 / 128, 0.99, 32
"""Data are refused if nearly all values of each band, many of them different, lie in this lowest part of its range.

Such counts use fewer bits than their type. A dark image has only a few different values there.
"""

Ends = tuple[float, float]
"""The values between which counts are not clipped."""

_NO_ENDS = (-np.inf, np.inf)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """Properties of the training data.

    Attributes:
        values: how the stored integers are converted.
        usual: percentiles 0.1 and 99.9 of each band, in its unit.
        options: the options of `contrails prepare` that made it.
        size: height and width of a record.
        convention: format of masks in a table.
    """

    values: Values
    usual: dict[str, tuple[float, float]]
    options: str = ""
    size: tuple[int, int] = (0, 0)
    convention: Convention = DEFAULT

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return the object that `dataclasses.asdict` converted, from JSON."""
        usual = {band: (low, high) for band, (low, high) in content["usual"].items()}
        height, width = content["size"]
        convention = Convention(**content["convention"] | {"columns": tuple(content["convention"]["columns"])})
        return cls(Values(**content["values"]), usual, content["options"], (height, width), convention)


def inputs_of(dataset: Dataset) -> Inputs:
    """Return the properties of a dataset, measured on a sample of its records."""
    usual = {}
    for band, values in _sample(dataset, dataset.band_names).items():
        low, high = np.percentile(values, _PERCENTILES) if values.size else (0.0, 0.0)
        usual[band] = (float(low), float(high))
    height, width = dataset.votes.shape[1:]
    return Inputs(values_in(dataset), usual, dataset.options, (height, width), dataset.convention)


def require_like(inputs: Inputs | None, dataset: Dataset, bands: Collection[str], again: str) -> None:
    """Check that a dataset has the units and usual values of an ensemble's training data, in the bands that it uses.

    Args:
        inputs: properties of the training data; None for an ensemble of the first versions.
        dataset: the dataset to predict.
        bands: the bands that the members use.
        again: the command that makes the ensemble again.

    Raises:
        DataError: its unit or its values differ.
    """
    if inputs is None:
        _warn(again)
        return
    values = values_in(dataset)
    _require_unit(inputs, dataset.path, values.units, share=is_fraction(values))
    # values outside the range were clipped when they were packed, so they cannot be detected any more
    ends = _ends(values, -0.5) if "range" in read_options(dataset.options) else _NO_ENDS
    _require_usual(inputs, dataset.path, _sample(dataset, sorted(bands)), ends)


def values_for(inputs: Inputs | None, raster: Raster, bands: Collection[str], again: str) -> Values:
    """Return how an image is packed for an ensemble, after checking its units and usual values.

    Args:
        inputs: properties of the training data; None for an ensemble of the first versions.
        raster: the image to predict.
        bands: the bands that the members use.
        again: the command that makes the ensemble again.

    Raises:
        DataError: its unit or its values differ, or cannot be compared.
    """
    native = None if needs_span([raster]) else values_of([raster])
    if inputs is None:
        is_plain = native is not None and is_fraction(native) and raster.bits == 8 * np.dtype(raster.dtype).itemsize
        if native is None or not is_plain:
            raise DataError(
                f"{raster.path}: expected 8 or 16 bits without a scale, found {raster.bits or 'no'} bits of "
                f"{raster.dtype} scaled by {raster.scales[0]:g}: the ensemble is of a version that did not record the "
                f"values of its training data; make it again with `{again}`"
            )
        _warn(again)
        return native
    unit = usual_unit(raster.units) if native is None else native.units
    _require_unit(inputs, raster.path, unit, share=None if native is None else is_fraction(native))
    every = dict(zip(raster.band_names, sample_of(raster), strict=True))
    sample = {band: every[band][np.isfinite(every[band])] for band in sorted(bands)}
    _require_usual(inputs, raster.path, sample, _ends(inputs.values, 0.5) if native is None else _NO_ENDS)
    return native or inputs.values


def _require_unit(inputs: Inputs, path: Path, unit: str, *, share: bool | None) -> None:
    """Check the unit ("" if the file names none) and whether numbers are fractions of the full range of their bits."""
    known = inputs.values
    kinds = {True: "fractions of the full range of the bits", False: f"values in {known.units}, with a scale"}
    if unit and unit != known.units:
        raise DataError(
            f"{path}: expected values in {known.units}, as in training, found values in {unit}; convert them, or give "
            "other data"
        )
    if share is not None and share != is_fraction(known):
        raise DataError(
            f"{path}: expected {kinds[not share]}, as in training, found {kinds[share]}; convert the files, or give "
            "other data"
        )


def _ends(values: Values, steps: float) -> Ends:
    """Return the values of the smallest and the largest count, moved outwards by this number of counts."""
    limits = np.iinfo(values.dtype)
    low, high = limits.min - steps, limits.max + steps
    return low * values.scale_factor + values.add_offset, high * values.scale_factor + values.add_offset


def _require_usual(inputs: Inputs, path: Path, sample: Mapping[str, np.ndarray], ends: Ends) -> None:
    """Check that most values of each band are in its usual range; warn if many are not.

    Raises:
        DataError: most values of a band are outside, or all bands fill only the lowest part of it.
    """
    odd = {band: _fraction_beyond(inputs.usual[band], values, ends) for band, values in sample.items() if values.size}
    small = {band: _fills_lowest_part(inputs.usual[band], sample[band]) for band in odd}
    if not odd:
        return
    worst = max(odd, key=lambda band: odd[band])
    (low, high), found = inputs.usual[worst], sample[worst]
    known = f"from about {low:.4g} to {high:.4g} {inputs.values.units}"
    check = "check its unit and scale, check that the file names its nodata value, or give other data"
    if odd[worst] > _MOST_ODD:
        raise DataError(
            f"{path}: expected the band {worst} {known}, as in training, found {found.min():.4g} to "
            f"{found.max():.4g}, mostly outside; {check}"
        )
    if is_fraction(inputs.values) and all(small.values()):
        raise DataError(
            f"{path}: expected the band {worst} {known}, as in training, found all bands in the lowest "
            f"1/{1 / _SMALL_PART:.0f} of it ({found.min():.4g} to {found.max():.4g}), as if the counts had fewer bits "
            "than their type; scale them to the full range of the type, or give other data"
        )
    if odd[worst] > _SOME_ODD:
        log.warning(
            "%s: about %.2g of the values are outside the usual range of the training data: band %s, found %.4g to "
            "%.4g, expected %s",
            *(path, odd[worst], worst, found.min(), found.max(), known),
        )


def _fraction_beyond(usual: tuple[float, float], values: np.ndarray, ends: Ends) -> float:
    """Return the fraction of values outside the usual range, or clipped although the usual values are not clipped."""
    margin = _MARGIN * max(usual[1] - usual[0], 1e-6)
    lowest = max(usual[0] - margin, ends[0] if ends[0] < usual[0] else -np.inf)
    highest = min(usual[1] + margin, ends[1] if ends[1] > usual[1] else np.inf)
    return float(np.mean((values < lowest) | (values > highest)))


def _fills_lowest_part(usual: tuple[float, float], values: np.ndarray) -> bool:
    lowest = usual[0] + _SMALL_PART * (usual[1] - usual[0])
    return bool(np.mean(values <= lowest) > _NEARLY_ALL) and len(np.unique(values)) >= _MANY_VALUES


def _sample(dataset: Dataset, bands: Collection[str]) -> dict[str, np.ndarray]:
    """Return a sample of each band's values where records have data, float64, of any length."""
    count = min(dataset.num_records, _MOST_RECORDS)
    rows = np.linspace(0, dataset.num_records - 1, count).round().astype(int)
    shown = {row: has_data(dataset, row)[::_EVERY_PX, ::_EVERY_PX] for row in rows.tolist()}
    found = {}
    for band in bands:
        index = dataset.band_names.index(band)
        counts = [
            dataset.bands[row, :, index, ::_EVERY_PX, ::_EVERY_PX][:, part].ravel() for row, part in shown.items()
        ]
        found[band] = np.concatenate(counts) * dataset.scale_factor + dataset.add_offset
    return found


def _warn(again: str) -> None:
    log.warning(
        "the ensemble has no record of its training units and values, so they are not checked; make it again: `%s`",
        again,
    )
