"""Image files of any size, read window by window: .npy, DICOM, and TIFF, PNG, JPEG, JPEG 2000 and BMP through GDAL.

`read` returns the stored counts, and `describe` the metadata of the file. `contrails.sources.radiometry` (images) and
`contrails.sources.masks` (masks) convert counts to values. A file is refused if it is truncated, damaged, holds several
images, or is rotated for display; the error says what to do.
"""

from pathlib import Path

import numpy as np

from contrails.errors import DataError
from contrails.files import storage
from contrails.sources.rasters import arrays, dicom, gdal
from contrails.sources.rasters.gdal import coordinate_system
from contrails.sources.rasters.raster import Raster, Window, bands_in_front, usual_names

__all__ = [
    "ENDINGS",
    "Raster",
    "Window",
    "bands_in_front",
    "coordinate_system",
    "describe",
    "read",
    "usual_names",
]

_ARRAY = (".npy",)
_DICOM = (".dcm", ".dicom")
ENDINGS = (".tif", ".tiff", ".jp2", ".j2k", ".png", ".jpg", ".jpeg", ".bmp", *_ARRAY, *_DICOM)


def describe(path: Path) -> Raster:
    """Return the metadata of an image file without reading its pixels.

    Raises:
        DataError: the file is missing, damaged, of an unknown format, or refused.
        StorageError: the file may not be read.
    """
    if not path.is_file():
        raise DataError(f"expected an image at {path}, found none; check its name, or remove it from the list")
    with storage(path, "read"):
        path.open("rb").close()  # so that a missing permission is a StorageError, not a damaged file
    ending = path.suffix.lower()
    if ending in _ARRAY:
        return arrays.describe(path)
    return dicom.describe(path) if ending in _DICOM else gdal.describe(path)


def read(path: Path, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Return the counts of a window, and which pixels are valid: neither nodata, masked out nor transparent.

    Raises:
        DataError: the file is damaged.

    Shape:
        (C, height, width) of the file's type, and bool (height, width).
    """
    ending = path.suffix.lower()
    if ending not in _ARRAY and ending not in _DICOM:
        return gdal.read(path, window)
    row, column, height, width = window
    whole, valid = (arrays.read(path), None) if ending in _ARRAY else dicom.read(path)
    where = np.s_[..., row : row + height, column : column + width]
    counts = np.ascontiguousarray(whole[where], whole.dtype.newbyteorder("="))
    return counts, np.ones((height, width), bool) if valid is None else valid[where]
