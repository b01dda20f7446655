"""Conversion of stored integers (counts) of images to values, with one scale for a whole dataset.

Counts without a scale stand for fractions: 0 for the count 0, 1 for the largest count of their number of bits. Counts
with a scale (of GDAL, or the slope and intercept of DICOM) stand for values in a unit. If all files agree, their counts
are packed unchanged. Other types, and files that differ, are packed as 16-bit integers with one scale over a span of
values (see `contrails.sources.spans`).
"""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from contrails.dataset.layout import Values
from contrails.errors import DataError
from contrails.sources.rasters import Raster, Window, read

_KEPT = ("uint8", "uint16", "int16")
"""Types of counts that are packed unchanged."""

_SPAN_TYPE = "uint16"
_SPAN_STEPS = 65_534
"""Steps of a span: its smallest value has the count 1, its largest 65,535; the count 0 is nodata."""

_LEAVE_OUT = "; convert them, or leave them out"
_ONE_SCALE = "; convert them, or prepare all of them with one scale, such as --range 0,1 of contrails prepare"

_FULL = {(1 << bits) - 1 for bits in range(1, 17)}
"""Largest counts for 1 to 16 bits."""

_NUM_WINDOWS, _WINDOW_PX = 4, 128
_MOST_SHOWN = 200

Span = tuple[float, float]
"""Smallest and largest value of the packed counts."""


def values_of(rasters: Sequence[Raster], span: Span | None = None) -> Values:
    """Return type and scale of a dataset of these images; `span` is required if `needs_span`.

    Raises:
        DataError: the images differ in their bands or in the meaning of their counts.
    """
    assert span is not None or not needs_span(rasters)
    readings = [_reading(raster) for raster in rasters]
    _require_alike(rasters, [f"the bands {', '.join(raster.band_names)}" for raster in rasters], _LEAVE_OUT)
    _require_alike(
        rasters, ["counts without a scale" if each.is_fraction else "a scale" for each in readings], _LEAVE_OUT
    )
    is_fraction = readings[0].is_fraction
    units = ["" if is_fraction else usual_unit(raster.units) for raster in rasters]
    _require_alike(rasters, [f"values in {unit or 'no unit'}" for unit in units], _LEAVE_OUT)
    if span is not None:
        return _values_of_span(span, units[0] or "1")
    _require_alike(rasters, [f"{raster.bits} bits of {raster.dtype}" for raster in rasters], _ONE_SCALE)
    scales = [" and ".join(dict.fromkeys(map(str, each.scales))) for each in readings]
    _require_alike(rasters, [f"the scale and offset {scale}" for scale in scales], _ONE_SCALE)
    first = readings[0]
    if len(set(first.scales)) > 1:
        raise DataError(
            f"{rasters[0].path}: expected one scale and offset for all bands, found {scales[0]}{_ONE_SCALE}"
        )
    scale, offset = (1 / first.top, 0.0) if is_fraction else first.scales[0]
    return Values(rasters[0].dtype, scale, offset, units[0] or "1")


def needs_span(rasters: Sequence[Raster]) -> bool:
    """Return whether images have counts that cannot be packed unchanged."""
    return any(raster.dtype not in _KEPT for raster in rasters)


def is_fraction(values: Values) -> bool:
    """Return whether values are fractions of the largest count, from 0 to 1."""
    steps = 1 / values.scale_factor
    whole = values.add_offset == 0 and round(steps) in _FULL and abs(steps - round(steps)) < 1e-6 * steps
    return values.units == "1" and (whole or values == _values_of_span((0.0, 1.0), "1"))


def usual_unit(unit: str) -> str:
    """Return "K" for any spelling of kelvin; other units are returned unchanged."""
    return "K" if unit.lower() in ("k", "kelvin", "degrees kelvin", "deg k", "degk") else unit


def read_values(raster: Raster, window: Window) -> list[np.ndarray]:
    """Return the values of the valid pixels of a window, a float64 array of any length per band."""
    reading, (bands, valid) = _reading(raster), read(raster.path, window)
    return [reading.values(bands, band)[valid] for band in range(len(bands))]


def sample_of(raster: Raster) -> list[np.ndarray]:
    """Return the values of a few windows spread over an image, in the form of `read_values`."""
    height, width = min(raster.height, _WINDOW_PX), min(raster.width, _WINDOW_PX)
    rows = np.linspace(0, raster.height - height, _NUM_WINDOWS).astype(int).tolist()
    columns = np.linspace(0, raster.width - width, _NUM_WINDOWS).astype(int).tolist()
    found = [read_values(raster, (row, column, height, width)) for row in rows for column in columns]
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def packed_integers(
    bands: np.ndarray, valid: np.ndarray, raster: Raster, values: Values
) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts of a window for a dataset file, and which pixels are valid (also: finite).

    Values outside of the range of the counts are clipped.

    Shape:
        bands (C, h, w) as `read` returned them and valid bool (h, w), to (C, h, w) of the values' type and bool (h, w).
    """
    reading, dtype = _reading(raster), np.dtype(values.dtype)
    if raster.dtype == values.dtype and reading.fits(values):
        return reading.turn(bands), valid
    counts, limits = np.zeros(bands.shape, dtype), np.iinfo(dtype)
    for band in range(len(bands)):  # band by band, as float64 takes several times the memory
        exact = (reading.values(bands, band) - values.add_offset) / values.scale_factor
        valid = valid & np.isfinite(exact)
        counts[band] = np.rint(np.where(valid, exact, 0)).clip(limits.min, limits.max)
    return counts, valid


def _values_of_span(span: Span, units: str) -> Values:
    step = (span[1] - span[0]) / _SPAN_STEPS
    return Values(_SPAN_TYPE, step, span[0] - step, units)


@dataclass(frozen=True)
class _Reading:
    """The conversion of an image's counts to values.

    Counts of bands in `turned` are first replaced by `zero - count`. `scales` holds scale and offset of each band; the
    scales are positive. `top` is the count of the fraction 1.
    """

    scales: tuple[tuple[float, float], ...]
    turned: tuple[bool, ...]
    zero: int
    top: int
    is_fraction: bool

    def fits(self, values: Values) -> bool:
        """Return whether a dataset with these values has the same counts."""
        mine = (1 / self.top, 0.0) if self.is_fraction else self.scales[0]
        return len(set(self.scales)) == 1 and mine == (values.scale_factor, values.add_offset)

    def turn(self, bands: np.ndarray) -> np.ndarray:
        """Return counts (C, h, w) that increase with the values."""
        if not any(self.turned):
            return bands
        rising: np.ndarray = bands.copy()
        for band in np.flatnonzero(self.turned):
            np.subtract(bands.dtype.type(self.zero), bands[band], out=rising[band])
        return rising

    def values(self, bands: np.ndarray, band: int) -> np.ndarray:
        """Return the values of one band, float64 (h, w)."""
        counts = bands[band].astype(np.float64)
        counts = self.zero - counts if self.turned[band] else counts
        scale, offset = (1 / self.top, 0.0) if self.is_fraction else self.scales[band]
        values: np.ndarray = counts * scale + offset
        return values


def _reading(raster: Raster) -> _Reading:
    kind = np.dtype(raster.dtype).kind
    if raster.palette:
        raise DataError(
            f"{raster.path}: expected intensities, found colour numbers of a palette; convert it: "
            f"`gdal_translate -expand rgb {raster.path} OUT` (or -expand gray)"
        )
    if kind not in "iuf" or not all(raster.scales) or (kind == "f" and raster.zero_is_white):
        found = f"{raster.dtype}{' where zero is white' if raster.zero_is_white else ''}, scaled by {raster.scales}"
        raise DataError(f"{raster.path}: expected integers or floating-point numbers, found {found}; convert it")
    signed = kind == "i"
    zero, top = (
        (-1, (1 << (raster.bits - 1)) - 1) if signed else (0, 0) if kind == "f" else ((1 << raster.bits) - 1,) * 2
    )
    turned = tuple(raster.zero_is_white != (scale < 0 and kind != "f") for scale in raster.scales)
    scales = tuple(
        (scale, offset) if scale > 0 or kind == "f" else (-scale, offset + scale * zero)
        for scale, offset in zip(raster.scales, raster.offsets, strict=True)
    )
    return _Reading(scales, turned, zero, top, kind != "f" and set(scales) == {(1.0, 0.0)})


def without_alpha(raster: Raster) -> str:
    """Return the advice for a band that a file declares wrongly as an alpha channel."""
    count = len(raster.band_names)
    kinds = ["red", "green", "blue"] if count == 3 else ["gray", *["undefined"] * (count - 1)]
    return (
        "if it is a band like the others, such as near infrared, declare it in the file: "
        f"`rio edit-info --colorinterp {','.join([*kinds, 'undefined'])} {shlex.quote(str(raster.path))}`"
    )


def _require_alike(rasters: Sequence[Raster], found: Sequence[str], next_step: str) -> None:
    """Check that a property is the same for all images."""
    kinds = Counter(found)
    if len(kinds) > 1:
        common, odd = kinds.most_common(1)[0][0], kinds.most_common()[-1][0]
        raise DataError(
            f"{rasters[found.index(odd)].path}: expected {_cut(common)} as in most of the images, found {_cut(odd)} "
            f"({kinds[odd]} such files){next_step}"
        )


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
