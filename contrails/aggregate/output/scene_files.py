"""Writing predictions of scenes as image files, strip by strip: GeoTIFF with the scene's georeference, or PNG."""

import json
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from contrails.dataset.store import NOWHERE, Scene
from contrails.errors import DataError, StorageError
from contrails.files import atomic_path
from contrails.metrics import NUM_BINS
from contrails.sources.optional import require

Kind = Literal["tif", "png", "probabilities"]
NODATA = 255
"""Value of a GeoTIFF mask where nothing was predicted; other values are 0 and 1."""

_BLOCK = 512
_CACHE_MB = 64


class WriteStrip(Protocol):
    """Function that writes rows of a scene, starting at `row`: uint8 (rows, width), or uint16 for probabilities."""

    def __call__(self, row: int, values: np.ndarray) -> None: ...


@contextmanager
def scene_file(path: Path, scene: Scene, kind: Kind) -> Iterator[WriteStrip]:
    """Yield a function that writes the rows of a scene into `path`, which exists only once all of them are written.

    A mask is 0 and 1 with 255 for no data in a GeoTIFF, 0 and 255 in a PNG file. Probabilities are uint16 with a scale,
    in a GeoTIFF.

    Raises:
        StorageError: the file cannot be written.
    """
    rasterio = require("rasterio", f"writing {path.name}")
    # by default GDAL uses 5% of the machine's memory for blocks that are not yet complete
    with rasterio.Env(GDAL_CACHEMAX=_CACHE_MB), atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        draft = temporary.with_name(f"{temporary.name}.draft") if kind == "png" else temporary
        written: list[tuple[int, int, int]] = []
        try:
            with rasterio.open(draft, "w", **_profile(scene, kind)) as file:
                if kind != "png":
                    _write_location(file, scene)

                def write(row: int, values: np.ndarray) -> None:
                    file.write(values, 1, window=((row, row + len(values)), (0, scene.width)))
                    written.append((row, len(values), zlib.crc32(values.tobytes())))

                yield write
                if kind == "probabilities":
                    file.scales = (1 / (NUM_BINS - 1),)
            if kind == "png":  # GDAL cannot write a PNG file strip by strip
                require("rasterio.shutil", "writing a PNG file").copy(draft, temporary, driver="PNG")
            _require_written(temporary, written, path)
        except require("rasterio._err", f"writing {path.name}").CPLE_BaseError as error:  # raised on a full disk
            raise _not_written(path, str(error)) from error
        finally:
            if kind == "png":
                draft.unlink(missing_ok=True)


def _write_location(file: Any, scene: Scene) -> None:
    """Write the georeference of a scene that has no affine transform."""
    control = json.loads(scene.control) if scene.control else {}
    if points := control.get("gcps"):
        point = require("rasterio.control", "writing a GeoTIFF").GroundControlPoint
        crs = require("rasterio", "writing a GeoTIFF").CRS.from_wkt(scene.crs) if scene.crs else None
        file.gcps = [point(*each) for each in points], crs
    if polynomials := control.get("rpcs"):
        file.rpcs = require("rasterio.rpc", "writing a GeoTIFF").RPC.from_gdal(polynomials)


def _require_written(temporary: Path, written: list[tuple[int, int, int]], path: Path) -> None:
    """Read back what was written: GDAL writes its last blocks on closing, and does not report their errors.

    Args:
        temporary: path of the file.
        written: first row, number of rows and CRC-32 of each strip.
        path: final path of the file, for the error.
    """
    rasterio = require("rasterio", f"reading {path.name}")
    try:
        with rasterio.open(temporary) as file:
            for row, count, checksum in written:
                values = file.read(1, window=((row, row + count), (0, file.width)))
                if zlib.crc32(values.tobytes()) != checksum:
                    raise _not_written(path, f"its rows from {row} on differ from what was written")
    except rasterio.errors.RasterioError as error:
        raise _not_written(path, "the written file cannot be read") from error


def read_scene(path: Path) -> np.ndarray:
    """Return the first band of a scene's file, (H, W).

    Raises:
        DataError: it cannot be read completely.
    """
    rasterio = require("rasterio", f"reading {path.name}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path) as file:
                values: np.ndarray = file.read(1)
    except rasterio.errors.RasterioError as error:
        raise DataError(f"{path} cannot be read: {error}; remove it, then run the same command again") from error
    return values


def _not_written(path: Path, reason: str) -> StorageError:
    return StorageError(
        f"cannot write {path}: {reason}; check the free space and your quota, then run the same command again"
    )


def mask_values(mask: np.ndarray, predicted: np.ndarray, kind: Kind) -> np.ndarray:
    """Return the pixel values of a mask in a file of this kind, uint8 (H, W)."""
    if kind == "png":
        return np.where(mask & predicted, np.uint8(255), np.uint8(0))
    return np.where(predicted, mask.astype(np.uint8), np.uint8(NODATA))


def _profile(scene: Scene, kind: Kind) -> dict[str, object]:
    profile: dict[str, object] = {
        "driver": "GTiff",
        "height": scene.height,
        "width": scene.width,
        "count": 1,
        "dtype": "uint16" if kind == "probabilities" else "uint8",
        "compress": "deflate",
        "bigtiff": "if_safer",
    }
    if min(scene.height, scene.width) >= _BLOCK:
        profile |= {"tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK}
    if kind != "png":
        rasterio = require("rasterio", "writing a GeoTIFF")
        profile |= {"crs": scene.crs} if scene.crs and '"gcps"' not in scene.control else {}  # GDAL allows one of both
        profile |= {"transform": rasterio.Affine(*scene.transform)} if scene.transform != NOWHERE else {}
    return profile | ({"nodata": NODATA} if kind == "tif" else {})
