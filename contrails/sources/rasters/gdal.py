"""Images read by GDAL: TIFF, PNG, JPEG, JPEG 2000 and BMP, with their scale and georeference."""

import json
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from contrails.dataset.store import NOWHERE
from contrails.errors import DataError
from contrails.sources.optional import require
from contrails.sources.rasters.container import Container, look_into
from contrails.sources.rasters.raster import Raster, Window, usual_names

_STACK = re.compile(r"^ImageJ=.*?^images=([0-9]+)", re.DOTALL | re.MULTILINE)
"""Finds the number of images in the description that ImageJ writes; GDAL reads only the first of such images."""

_OTHER_COLOURS = ("CMYK", "CIELAB")
"""Colour spaces that GDAL converts to red, green and blue by its own formula."""


def describe(path: Path) -> Raster:
    """Return the metadata of an image file; raises as `contrails.sources.rasters.describe`."""
    with _gdal(path):
        opened = _open(path)
        source, numbers = opened.source, opened.colours
        _require_one_image(path, source, opened.container)
        bits = _bits(path, source, numbers)
        palette, zero_is_white = _meaning(opened, bits)
        units = {(source.units[number - 1] or "").strip() for number in numbers}
        crs, control = _control(source)
        return Raster(
            path=path,
            height=source.height,
            width=source.width,
            band_names=_names(source, numbers),
            dtype=source.dtypes[numbers[0] - 1],
            bits=bits,
            scales=tuple(float(source.scales[number - 1]) for number in numbers),
            offsets=tuple(float(source.offsets[number - 1]) for number in numbers),
            units=units.pop() if len(units) == 1 else "",
            zero_is_white=zero_is_white,
            palette=palette,
            nodata=source.nodatavals[numbers[0] - 1] if _flags(source) >= {"nodata"} else None,
            mask=_mask(source),
            has_alpha=len(numbers) < source.count,
            crs=crs.to_wkt() if crs else "",
            transform=tuple(source.transform)[:6],
            control=control,
        )


def read(path: Path, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts of a window, and which pixels are valid; see `contrails.sources.rasters.read`."""
    row, column, height, width = window
    where = ((row, row + height), (column, column + width))
    with _gdal(path):
        opened = _open(path)
        return opened.source.read(opened.colours, window=where), opened.source.dataset_mask(window=where) > 0


@lru_cache(maxsize=64)
def coordinate_system(wkt: str) -> str:
    """Return the EPSG name of a coordinate system, such as EPSG:32633, or "" if it has none."""
    code = require("rasterio", "coordinate systems").CRS.from_wkt(wkt).to_epsg()
    return "" if code is None else f"EPSG:{code}"


@contextmanager
def _gdal(path: Path) -> Iterator[None]:
    rasterio = require("rasterio", f"reading {path.name}")
    # rasterio does not convert some errors of GDAL, and tags that are not UTF-8 raise UnicodeDecodeError
    errors = (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError, UnicodeDecodeError)
    # GDAL's faster path for whole PNG files checks neither checksums nor missing rows; libjpeg only warns of missing
    # data and fills them in
    options = {"GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO", "GDAL_ERROR_ON_LIBJPEG_WARNING": "TRUE"}
    with warnings.catch_warnings(), rasterio.Env(**options):
        # most images have no georeference, which is no reason for a warning
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        try:
            yield
        except errors as error:
            reason = error.__cause__ or error
            raise DataError(
                f"{path}: expected an image that GDAL can read, found a damaged, truncated or another file ({reason}); "
                "get it again"
            ) from error


@dataclass(frozen=True)
class _Opened:
    """An open file, its container, and the kinds of its bands, such as red, alpha or palette."""

    source: Any
    container: Container
    kinds: tuple[str, ...]

    @property
    def colours(self) -> list[int]:
        """The numbers of the bands that are not an alpha channel."""
        return [number for number, kind in enumerate(self.kinds, start=1) if kind != "alpha"]


def _open(path: Path) -> _Opened:
    status = path.stat()
    return _opened(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _opened(path: Path, _size: int, _mtime_ns: int) -> _Opened:
    """Return an open file; a few stay open in the cache, as tiles of a scene are read one after another."""
    container = look_into(path)
    # a fixed driver: one chosen by GDAL could follow references to other files, such as that of virtual rasters
    source = require("rasterio", f"reading {path.name}").open(path, driver=container.driver)
    # accessed now, as rasterio raises errors of opening (such as of georeference keys) only later, for another file
    return _Opened(source, container, tuple(kind.name for kind in source.colorinterp))


def _require_one_image(path: Path, source: Any, container: Container) -> None:
    """Refuse files with several images, or with an image that is displayed in another orientation than stored."""
    if pages := source.subdatasets:
        names = ", ".join(page.removesuffix(f":{path}") for page in pages[:4])
        raise DataError(
            f"{path}: expected one image, found {len(pages)} ({names}{', ...' if len(pages) > 4 else ''}); write the "
            f"one that you need to a file of its own: `gdal_translate {pages[0]} OUT.tif`"
        )
    stack = _STACK.search(source.tags().get("TIFFTAG_IMAGEDESCRIPTION", ""))
    if stack and int(stack[1]) > 1:
        raise DataError(
            f"{path}: expected one image, found a stack of {stack[1]} from ImageJ; write the one that you need to a "
            "file of its own, with Image > Stacks > Stack to Images"
        )
    if container.orientation != 1:
        raise DataError(
            f"{path}: expected an image without rotation, found the orientation tag {container.orientation}, so that "
            "its mask may have another orientation; rotate the pixels and remove the tag, with `exiftran -a` (JPEG) or "
            "`magick IN -auto-orient OUT`"
        )
    colours = source.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE")
    if colours in _OTHER_COLOURS:
        raise DataError(
            f"{path}: expected grey, or colours as red, green and blue, found {colours}; convert it, with "
            "`magick IN -colorspace sRGB OUT` for instance"
        )


def _names(source: Any, numbers: Sequence[int]) -> tuple[str, ...]:
    described = [(source.descriptions[number - 1] or "").lower() for number in numbers]
    named = all(name.isidentifier() for name in described) and len(set(described)) == len(described)
    return tuple(described) if named else usual_names(len(numbers))


def _bits(path: Path, source: Any, numbers: Sequence[int]) -> int:
    """Return the number of bits of the counts, 0 if they are no integers."""
    types = {np.dtype(source.dtypes[number - 1]) for number in numbers}
    depths = {int(source.tags(number, ns="IMAGE_STRUCTURE").get("NBITS", 0)) for number in numbers}
    if len(types) > 1 or len(depths) > 1:
        found = [f"{source.dtypes[number - 1]}" for number in numbers] if len(types) > 1 else sorted(depths)
        raise DataError(
            f"{path}: expected bands of one type and depth, found {', '.join(map(str, found))}; convert it, or write "
            "each band to a file of its own"
        )
    (dtype,), (depth,) = types, depths
    return (depth or 8 * dtype.itemsize) if dtype.kind in "iu" else 0


def _meaning(opened: _Opened, bits: int) -> tuple[bool, bool]:
    """Return whether counts are colour numbers of a palette (not one of even greys), and whether zero is white."""
    if "palette" not in opened.kinds:
        return False, opened.source.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES"
    colours, top = opened.source.colormap(1), (1 << bits) - 1
    for zero_is_white in (False, True):
        greys = ((top - count if zero_is_white else count) * 255 // top for count in range(top + 1))
        if all(colours.get(count, ())[:3] == (grey,) * 3 for count, grey in enumerate(greys)):
            return False, zero_is_white
    return True, [colours.get(count, ())[:3] for count in (0, 1)] == [(255,) * 3, (0,) * 3]


def _flags(source: Any) -> set[str]:
    """Return GDAL's flags for what marks pixels as valid; a mask of the file is not used if there is a nodata value."""
    flags = {flag.name for flag in source.mask_flag_enums[0]}
    return flags - {"per_dataset"} if "nodata" in flags else flags


def _mask(source: Any) -> str:
    flags = _flags(source)
    return "alpha" if "alpha" in flags else "mask band" if "per_dataset" in flags else ""


def _control(source: Any) -> tuple[Any, str]:
    """Return the coordinate system, and the control points or rational polynomials of an image as JSON, or ""."""
    points, crs = source.gcps if tuple(source.transform)[:6] == NOWHERE else ([], None)
    found: dict[str, Any] = {}
    if points:
        found["gcps"] = [[point.row, point.col, point.x, point.y, point.z or 0.0] for point in points]
    if source.rpcs is not None:
        found["rpcs"] = source.rpcs.to_gdal()
    return crs or source.crs, json.dumps(found, sort_keys=True) if found else ""
