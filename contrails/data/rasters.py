"""Image files of any size, read window by window: .npy, DICOM, and whatever GDAL knows (GeoTIFF, JPEG 2000, PNG, JPEG).

What cannot be understood without a guess is refused with the way out: palettes, orientations that viewers apply, DICOM
files without pixels or with signed ones.
"""

import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from contrails.data.arrays import load_npy
from contrails.data.optional import require
from contrails.data.store import NOWHERE
from contrails.errors import DataError
from contrails.files import storage

ENDINGS = (".tif", ".tiff", ".jp2", ".j2k", ".png", ".jpg", ".jpeg", ".npy", ".dcm", ".dicom")
_DICOM = (".dcm", ".dicom")
_UNDECODABLE = (
    *(ValueError, TypeError, AttributeError, NotImplementedError, RuntimeError, EOFError, OSError, struct.error),
)
"""What pydicom raises for attributes and pixels that it cannot decode, besides its own errors."""

Window = tuple[int, int, int, int]
"""Row, column, height and width in pixels."""


@dataclass(frozen=True)
class Raster:
    """What a file says of its image.

    `crs` is a WKT or "" and `transform` maps (column, row) to coordinates; of a DICOM file its pixels in mm.
    `patient` is that of a DICOM file, or "".
    """

    path: Path
    height: int
    width: int
    band_names: tuple[str, ...]
    dtype: str
    crs: str = ""
    transform: tuple[float, ...] = NOWHERE
    patient: str = ""


def describe(path: Path) -> Raster:
    """Return what a file says of its image; pixels are not read.

    Raises:
        DataError: the file is missing, damaged, of an unknown kind, or of one that is refused.
        StorageError: the file may not be read.
    """
    if not path.is_file():
        raise DataError(f"expected an image at {path}, found none; check its name, or take it off the list")
    with storage(path, "read"):
        path.open("rb").close()  # what the file system refuses is not the file's fault
    if path.suffix.lower() == ".npy":
        array = _load_npy(path)
        height, width, count = array.shape
        return Raster(path, height, width, usual_names(count), array.dtype.name)
    if path.suffix.lower() in _DICOM:
        with _dicom_errors(path):
            return _describe_dicom(path)
    with _rasterio_errors(path):
        return _describe_gdal(path)


def read(path: Path, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels of a window, and where they are data: neither nodata nor transparent.

    Raises:
        DataError: the file is damaged.

    Shape:
        (C, height, width) of the file's type, and bool (height, width).
    """
    row, column, height, width = window
    part = (slice(row, row + height), slice(column, column + width))
    if path.suffix.lower() == ".npy":
        return np.ascontiguousarray(_load_npy(path)[part].transpose(2, 0, 1)), np.ones((height, width), bool)
    if path.suffix.lower() in _DICOM:
        with _dicom_errors(path):
            return np.ascontiguousarray(_dicom_pixels(path)[:, *part]), np.ones((height, width), bool)
    with _rasterio_errors(path):
        source = _open_gdal(path)
        where = ((row, row + height), (column, column + width))
        return source.read(_colours(source), window=where), source.dataset_mask(window=where) > 0


def usual_names(count: int) -> tuple[str, ...]:
    """Return the names of bands that have none: grey, red green blue, or b01 and so on."""
    known = {1: ("grey",), 3: ("red", "green", "blue")}
    return known.get(count, tuple(f"b{number:02d}" for number in range(1, count + 1)))


def _load_npy(path: Path) -> np.ndarray:
    """Map an array (H, W) or (H, W, C) as (H, W, C)."""
    array = load_npy(path, "get it again", "r")
    if array.ndim not in (2, 3) or array.size == 0:
        raise DataError(f"{path}: expected an array (height, width) or (height, width, bands), found {array.shape}")
    return array.reshape(*array.shape[:2], -1)


@contextmanager
def _rasterio_errors(path: Path) -> Iterator[None]:
    rasterio = require("rasterio", f"reading {path.name}")
    # GDAL's own errors come through where rasterio does not look for them; it takes texts of tags for UTF-8
    errors = (rasterio.errors.RasterioError, rasterio._err.CPLE_BaseError, UnicodeDecodeError)
    with warnings.catch_warnings():
        # most images lie nowhere on Earth, which is no reason for a warning
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        try:
            yield
        except errors as error:
            reason = error.__cause__ or error
            raise DataError(
                f"{path} is damaged, cut short or no image that GDAL knows ({reason}); get it again"
            ) from error


@lru_cache(maxsize=8)
def _open_gdal(path: Path) -> Any:
    """Return an open file; a few stay open, as tiles of a scene are read one after another."""
    return require("rasterio", f"reading {path.name}").open(path)


def _colours(source: Any) -> list[int]:
    """Return the numbers of the bands that are not an alpha channel."""
    return [number for number, kind in zip(source.indexes, source.colorinterp, strict=True) if kind.name != "alpha"]


def _describe_gdal(path: Path) -> Raster:
    rasterio = require("rasterio", f"reading {path.name}")
    with rasterio.open(path) as source:
        if any(kind.name == "palette" for kind in source.colorinterp):
            raise DataError(
                f"{path} holds numbers of a palette's colours, not intensities; convert it: "
                f"`gdal_translate -expand rgb {path.name} OUT` (or -expand gray)"
            )
        turned = source.tags().get("EXIF_Orientation", "1")
        if turned not in ("0", "1"):
            raise DataError(
                f"{path} is to be turned when it is shown (EXIF orientation {turned}), so that nobody can tell which "
                "way its mask lies; turn the pixels and remove the tag, as `exiftran -a` does"
            )
        numbers = _colours(source)
        described = [(source.descriptions[number - 1] or "").lower() for number in numbers]
        named = all(name.isidentifier() for name in described) and len(set(described)) == len(described)
        return Raster(
            path,
            source.height,
            source.width,
            tuple(described) if named else usual_names(len(numbers)),
            source.dtypes[numbers[0] - 1] if len(set(source.dtypes)) == 1 else "bands of several types",
            source.crs.to_wkt() if source.crs else "",
            tuple(source.transform)[:6],
        )


@contextmanager
def _dicom_errors(path: Path) -> Iterator[None]:
    """Turn what pydicom raises into a DataError; it decodes an attribute when it is asked for, so at any time."""
    errors = require("pydicom", f"reading {path.name}").errors
    with warnings.catch_warnings():
        # odd values of attributes that nobody asks for
        warnings.filterwarnings("ignore", module="pydicom")
        try:
            yield
        except (errors.InvalidDicomError, errors.BytesLengthException, *_UNDECODABLE) as error:
            raise DataError(
                f"{path} is damaged, no DICOM file, or has pixels of an unknown kind ({error}); get it again, or "
                "convert it"
            ) from error


def _describe_dicom(path: Path) -> Raster:
    file = _read_dicom(path, with_pixels=False)
    if not {"Rows", "Columns", "BitsAllocated"} <= set(file.dir()):
        raise DataError(f"{path} is a DICOM file without an image; leave it out")
    if file.get("PixelRepresentation", 0) or file.BitsAllocated not in (8, 16):
        kind = f"{'signed' if file.get('PixelRepresentation', 0) else 'unsigned'} {file.BitsAllocated}-bit"
        raise DataError(f"{path}: expected unsigned pixels of 8 or 16 bits, found {kind} ones; convert it to PNG")
    if int(file.get("NumberOfFrames", 1)) != 1:
        raise DataError(f"{path}: expected one image, found {file.NumberOfFrames} frames; write each to a file")
    meaning = file.get("PhotometricInterpretation", "")
    if not meaning.startswith(("MONOCHROME", "RGB", "YBR")):
        raise DataError(
            f"{path}: expected grey or colour pixels, found the photometric interpretation '{meaning}'; convert it to "
            "PNG with a DICOM viewer"
        )
    down, right = (float(step) for step in file.get("PixelSpacing") or file.get("ImagerPixelSpacing") or (1, 1))
    names = usual_names(int(file.get("SamplesPerPixel", 1)))
    bits = "uint8" if file.BitsAllocated == 8 else "uint16"
    return Raster(
        *(path, int(file.Rows), int(file.Columns), names, bits),
        transform=(right, 0.0, 0.0, 0.0, down, 0.0),
        patient=str(file.get("PatientID", "") or ""),
    )


def _dicom_pixels(path: Path) -> np.ndarray:
    """Return stored values (C, H, W), bright where the film is bright."""
    file = _read_dicom(path, with_pixels=True)
    if not file.get("PixelData"):
        raise DataError(f"{path} is a DICOM file without pixels; get it again, or leave it out")
    pixels: np.ndarray = file.pixel_array  # colours come as RGB
    if file.PhotometricInterpretation == "MONOCHROME1":  # zero is white there
        pixels = ((1 << int(file.BitsStored)) - 1) - pixels
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _read_dicom(path: Path, *, with_pixels: bool) -> Any:
    return require("pydicom", f"reading {path.name}").dcmread(path, stop_before_pixels=not with_pixels)
