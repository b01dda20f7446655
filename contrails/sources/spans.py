"""Spans: the smallest and largest value of the packed counts of a dataset, if the counts of its files are not kept.

A span is given by the user, or found from all values of the training images. Values outside of it are reported.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from contrails.dataset.layout import Values
from contrails.errors import DataError
from contrails.progress import bar
from contrails.sources.radiometry import Span, needs_span, read_values, values_of, without_alpha
from contrails.sources.rasters import Raster

_STRIP_VALUES = 1 << 23
_SAMPLE_VALUES = 1 << 22
_PERCENTILES = (0.1, 99.9)
_REACH = 4
"""How far a span can extend beyond the percentiles of the values, as a multiple of the distance between these two."""


@dataclass(frozen=True)
class Choice:
    """How values are packed: their type and scale, the span if counts are not kept, notes and warnings."""

    values: Values
    span: Span | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def option(self) -> str:
        """The option of `contrails prepare` that repeats this choice, or ""."""
        return "" if self.span is None else f"--range={self.span[0]!r},{self.span[1]!r}"


def choose_values(
    rasters: Sequence[Raster], of_training: Sequence[Raster], others: Sequence[Raster], span: Span | None
) -> Choice:
    """Choose how to pack the values of images: unchanged, with the given span, or with that of the training images.

    Args:
        rasters: metadata of all images.
        of_training: files of the training images.
        others: files of the other images, whose values outside of the span are reported.
        span: smallest and largest value to pack, or None.

    Raises:
        DataError: as `values_of`; a file is damaged, or none has any data.
    """
    warnings = _said_of_alpha(rasters)
    if span is None and not needs_span(rasters):
        return Choice(values_of(rasters), warnings=tuple(warnings))
    values_of(rasters, span or (0.0, 1.0))  # checks the metadata before all pixels are read
    found = _look_at(of_training)
    if span is None and not math.isfinite(found.high - found.low):
        raise DataError(
            f"{of_training[0].path} and others: expected a finite range of values, found {found.low:g} to "
            f"{found.high:g}; give --range"
        )
    chosen = span or _usual_span(found)
    values = values_of(rasters, chosen)
    choice = Choice(values, chosen)
    for looked_at in (found, *([_look_at(others)] if others else [])):
        warnings += _said_of_values(looked_at, choice)
    note = f"values from {found.low:g} to {found.high:g}: {choice.option}, in steps of {values.scale_factor:.3g}"
    return replace(choice, notes=(f"{note}, for all splits",), warnings=tuple(warnings))


def read_span(text: str) -> Span:
    """Parse a span in the format of the option, such as -100,60.5.

    Raises:
        DataError: the text is no span.
    """
    try:
        low, high = (float(number) for number in text.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not (math.isfinite(high - low) and low < high):
        raise DataError(f"'{text}': expected the smallest and the largest value, such as --range=-100,60")
    return low, high


@dataclass(frozen=True)
class _Found:
    """A sample of the values of images, float64, the lowest and highest of all, and the number that are not finite."""

    sample: np.ndarray
    low: float
    high: float
    num_odd: int


def _look_at(images: Sequence[Raster]) -> _Found:
    total = sum(image.height * image.width * len(image.band_names) for image in images)
    every = -(-total // _SAMPLE_VALUES)
    lows, highs, sample, num_odd = [], [], [], 0
    with bar("values", len(images)) as advance:
        for image in images:
            for values in _pieces(image):
                finite = values[np.isfinite(values)]
                num_odd += values.size - finite.size
                if finite.size:
                    lows.append(finite.min())
                    highs.append(finite.max())
                    sample.append(finite[::every].copy())
            advance(1)
    if not sample:
        raise DataError(f"{images[0].path}: expected numbers, found no data in {len(images)} files; check their nodata")
    return _Found(np.concatenate(sample), float(min(lows)), float(max(highs)), num_odd)


def _pieces(raster: Raster) -> Iterator[np.ndarray]:
    """Yield the valid values of an image, float64 (any number), per band and strip of rows."""
    rows = max(1, _STRIP_VALUES // (raster.width * len(raster.band_names)))
    for row in range(0, raster.height, rows):
        yield from read_values(raster, (row, 0, min(rows, raster.height - row), raster.width))


def _usual_span(found: _Found) -> Span:
    """Return the span of all values, limited to a multiple of the distance between their percentiles."""
    low, high = found.low, found.high
    first, last = (float(value) for value in np.percentile(found.sample, _PERCENTILES))
    reach = _REACH * (last - first)
    if reach:
        low, high = max(low, first - reach), min(high, last + reach)
    return low, high if high > low else low + max(1.0, abs(low))


def _said_of_values(found: _Found, choice: Choice) -> list[str]:
    assert choice.span is not None
    (low, high), said = choice.span, []
    if found.num_odd:
        said.append(f"{found.num_odd} values are NaN or infinite: their pixels are ignored")
    if found.low < low or found.high > high:
        share = np.mean((found.sample < low) | (found.sample > high))
        said.append(
            f"values range from {found.low:g} to {found.high:g}; a fraction of about {share:.2g} is outside of "
            f"{choice.option} and is clipped; if these values are nodata, declare them in the files: "
            "`gdal_edit.py -a_nodata VALUE FILE`"
        )
    return said


def _said_of_alpha(rasters: Sequence[Raster]) -> list[str]:
    found = [raster for raster in rasters if raster.has_alpha]
    if not found:
        return []
    said = f"{len(found)} of {len(rasters)} files have an alpha channel, such as {found[0].path}; it is not packed"
    said += ", and pixels with alpha 0 are ignored" if any(raster.mask == "alpha" for raster in found) else ""
    tiff = next((raster for raster in found if raster.path.suffix.lower() in (".tif", ".tiff")), None)
    return [said if tiff is None else f"{said}; {without_alpha(tiff)}"]
