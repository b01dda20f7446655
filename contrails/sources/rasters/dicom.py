"""DICOM files with one image: the stored counts, and the metadata for their conversion to values."""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from contrails.errors import DataError
from contrails.sources.optional import require
from contrails.sources.rasters.raster import Raster, usual_names

_UNDECODABLE = (
    *(ValueError, TypeError, AttributeError, KeyError, NotImplementedError, RuntimeError, EOFError, OSError),
    *(struct.error, zlib.error),
)
"""Errors that pydicom raises for attributes and pixels that it cannot decode, in addition to its own classes."""

_HOUNSFIELD = "HU"


def describe(path: Path) -> Raster:
    """Return the metadata of an image file; raises as `contrails.sources.rasters.describe`."""
    with _dicom_errors(path):
        file = _read(path, with_pixels=False)
        if not {"Rows", "Columns", "BitsAllocated"} <= set(file.dir()):
            raise DataError(
                f"{path}: expected a DICOM file with an image, found none, or the file is truncated before it; get it "
                "again, or leave it out"
            )
        _require_one_image(path, file)
        signed, allocated = bool(file.get("PixelRepresentation", 0)), int(file.BitsAllocated)
        down, right = (float(step) for step in file.get("PixelSpacing") or file.get("ImagerPixelSpacing") or (1, 1))
        scale, offset, units = _rescale(path, file)
        names = usual_names(int(file.get("SamplesPerPixel", 1)))
        return Raster(
            path=path,
            height=int(file.Rows),
            width=int(file.Columns),
            band_names=names,
            dtype=f"{'' if signed else 'u'}int{allocated}",
            bits=int(file.get("BitsStored") or allocated),
            scales=(scale,) * len(names),
            offsets=(offset,) * len(names),
            units=units,
            nodata=file.get("PixelPaddingValue") if len(names) == 1 else None,
            # MONOCHROME1 concerns only the display, so values in Hounsfield units are not inverted
            zero_is_white=file.PhotometricInterpretation == "MONOCHROME1" and units != _HOUNSFIELD,
            transform=(right, 0.0, 0.0, 0.0, down, 0.0),
            patient=str(file.get("PatientID", "") or ""),
        )


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return stored counts (C, H, W), colours as red, green and blue, and which pixels are not padding, bool (H, W).

    Raises:
        DataError: the file has no pixels, or they cannot be decoded.
    """
    status = path.stat()
    return _pixels(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=1)
def _pixels(path: Path, _size: int, _mtime_ns: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode an image and cache it, as a large image is read window by window."""
    with _dicom_errors(path):
        file = _read(path, with_pixels=True)
        if not file.get("PixelData"):
            raise DataError(f"{path}: expected a DICOM file with pixels, found none; get it again, or leave it out")
        pixels: np.ndarray = file.pixel_array  # pydicom converts colours to RGB
        bits = int(file.get("BitsStored") or file.BitsAllocated)
        first = file.get("PixelPaddingValue")
        last = file.get("PixelPaddingRangeLimit", first)
    pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    valid = np.ones(pixels.shape[1:], bool)
    if first is not None and len(pixels) == 1:
        valid = (pixels[0] < min(first, last)) | (pixels[0] > max(first, last))
    if (most := int(pixels[:, valid].max(initial=0))) >= 1 << bits:
        raise DataError(f"{path}: expected counts of {bits} bits (BitsStored), found {most}; get it again")
    return pixels, valid


def _require_one_image(path: Path, file: Any) -> None:
    """Refuse files with several images, or with pixels other than grey or colours of 8 or 16 bits."""
    if file.BitsAllocated not in (8, 16):
        raise DataError(f"{path}: expected pixels of 8 or 16 bits, found {file.BitsAllocated}; convert it to PNG")
    stored, high = int(file.get("BitsStored") or file.BitsAllocated), file.get("HighBit")
    if high is not None and int(high) != stored - 1:
        raise DataError(
            f"{path}: expected the highest bit of {stored} (BitsStored) to be {stored - 1} (HighBit), found {high}: "
            "its counts are shifted; convert it to PNG with a DICOM viewer"
        )
    if int(file.get("NumberOfFrames") or 1) != 1:
        raise DataError(f"{path}: expected one image, found {file.NumberOfFrames} frames; write each to a file")
    meaning = file.get("PhotometricInterpretation", "")
    if not meaning.startswith(("MONOCHROME", "RGB", "YBR")):
        raise DataError(
            f"{path}: expected grey or colour pixels, found the photometric interpretation '{meaning}'; convert it to "
            "PNG with a DICOM viewer"
        )


def _rescale(path: Path, file: Any) -> tuple[float, float, str]:
    """Return slope, intercept and the unit of the resulting values, or ""."""
    shared = (file.get("SharedFunctionalGroupsSequence") or [{}])[0]  # enhanced image types store it there
    said = (shared.get("PixelValueTransformationSequence") or [file])[0]
    if file.get("ModalityLUTSequence"):
        raise DataError(
            f"{path}: expected a slope and an intercept, found a table of values (ModalityLUTSequence); apply it, and "
            "save the image again"
        )
    slope, intercept = said.get("RescaleSlope"), said.get("RescaleIntercept")
    if slope is None and intercept is None:
        return 1.0, 0.0, ""
    kind = str(said.get("RescaleType") or "")
    is_hounsfield = kind == _HOUNSFIELD or (not kind and file.get("Modality") == "CT")
    units = _HOUNSFIELD if is_hounsfield else "" if kind == "US" else kind  # US: unspecified
    return float(1.0 if slope is None else slope), float(intercept or 0.0), units


@contextmanager
def _dicom_errors(path: Path) -> Iterator[None]:
    """Turn errors of pydicom into a DataError; it decodes attributes on access, so any access can raise."""
    errors = require("pydicom", f"reading {path.name}").errors
    with warnings.catch_warnings():
        # warnings about unusual values of attributes that are not used here
        warnings.filterwarnings("ignore", module="pydicom")
        try:
            yield
        except (errors.InvalidDicomError, errors.BytesLengthException, *_UNDECODABLE) as error:
            raise DataError(
                f"{path}: expected a DICOM file that pydicom can decode, found a damaged or other file ({error}); get "
                "it again, or convert it"
            ) from error


def _read(path: Path, *, with_pixels: bool) -> Any:
    return require("pydicom", f"reading {path.name}").dcmread(path, stop_before_pixels=not with_pixels)
