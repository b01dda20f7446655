"""Images as numpy arrays, (H, W) or (H, W, C), in .npy files; mapped, so that only the window is read."""

from pathlib import Path

import numpy as np

from contrails.errors import DataError
from contrails.sources.arrays import load_npy
from contrails.sources.rasters.raster import Raster, usual_names

_MOST_BANDS_IN_FRONT = 16


def describe(path: Path) -> Raster:
    """Return the metadata of an array; raises as `contrails.sources.rasters.describe`."""
    array = read(path)
    count, height, width = array.shape
    bits = 1 if _map(path).dtype == bool else 8 * array.itemsize if array.dtype.kind in "iu" else 0
    ones, zeros = (1.0,) * count, (0.0,) * count
    return Raster(path, height, width, usual_names(count), array.dtype.name, bits, ones, zeros)


def read(path: Path) -> np.ndarray:
    """Return an array as (C, H, W), mapped; bool becomes uint8 with 0 and 1."""
    array = _map(path)
    array = array.view(np.uint8) if array.dtype == bool else array
    return array.reshape(*array.shape[:2], -1).transpose(2, 0, 1)


def _map(path: Path) -> np.ndarray:
    array = load_npy(path, "get it again", "r")
    if array.ndim not in (2, 3) or array.size == 0:
        raise DataError(f"{path}: expected an array (height, width) or (height, width, bands), found {array.shape}")
    if array.dtype.kind not in "biuf":
        raise DataError(f"{path}: expected an array of numbers, found {array.dtype}; convert it")
    first, second, last = array.shape if array.ndim == 3 else (0, 0, 0)
    if array.ndim == 3 and (first < _MOST_BANDS_IN_FRONT < last or first < second == last):
        raise DataError(
            f"{path}: expected an array (height, width, bands), found {array.shape}, where the bands seem to come "
            "first; save np.moveaxis(array, 0, -1)"
        )
    return array
