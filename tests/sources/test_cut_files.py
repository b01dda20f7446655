"""Every format cut at many places, read whole and by windows: an error, or the exact pixels."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import rasterio
from image_files import write_dicom, write_raster
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless
from raw_files import png, tiff

from contrails.errors import DataError
from contrails.sources.rasters import describe, read

SIDE = 64
RNG = np.random.default_rng(3)
COLOURS = RNG.integers(0, 256, (3, SIDE, SIDE), np.uint8)
GREY = COLOURS[:1]


def of_gdal(counts: np.ndarray = COLOURS, **profile: Any) -> Callable[[Path], object]:
    return lambda path: write_raster(path, counts, **profile)


def of_bytes(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def of_pillow(counts: np.ndarray = COLOURS, **options: Any) -> Callable[[Path], object]:
    image = Image.fromarray(np.moveaxis(counts, 0, -1).squeeze())
    return lambda path: image.save(path, **options)


def with_mask(path: Path) -> None:
    write_raster(path, COLOURS)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(GREY[0] > 100)


def of_pydicom(path: Path) -> None:
    write_dicom(path, GREY[0].astype(np.uint16), BitsStored=12, HighBit=11)


def deflated(path: Path) -> None:
    of_pydicom(path)
    file = pydicom.dcmread(path)
    file.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file.save_as(path)


def in_runs(path: Path) -> None:
    of_pydicom(path)
    file = pydicom.dcmread(path)
    file.compress(RLELossless)
    file.save_as(path)


def as_jpeg(path: Path) -> None:
    write_dicom(path, GREY[0])
    buffer, file = io.BytesIO(), pydicom.dcmread(path)
    Image.fromarray(GREY[0]).save(buffer, "JPEG")
    file.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    file.PixelData = encapsulate([buffer.getvalue()])
    file["PixelData"].is_undefined_length = True
    file.save_as(path)


KINDS: dict[str, Callable[[Path], object]] = {
    "plain.png": of_gdal(),
    "grey.png": of_gdal(GREY),
    "deep.png": of_gdal(GREY.astype(np.uint16) * 200),
    "bits.png": of_bytes(png(GREY & 1, 1, 0)),
    "interlaced.png": of_bytes(png(COLOURS, 8, 2, interlaced=True)),
    "pillow.png": of_pillow(),
    "plain.jpg": of_pillow(),
    "progressive.jpg": of_pillow(progressive=True),
    "grey.jpg": of_gdal(GREY),
    "plain.bmp": of_pillow(),
    "grey.bmp": of_pillow(GREY),
    "plain.jp2": of_gdal(QUALITY="100", REVERSIBLE="YES"),
    "lossy.jp2": of_pillow(),
    "plain.tif": of_gdal(),
    "tiled.tif": of_gdal(tiled=True, blockxsize=16, blockysize=16, compress="lzw"),
    "deflate.tif": of_gdal(compress="deflate", nodata=7),
    "zstd.tif": of_gdal(compress="zstd"),
    "jpeg.tif": of_gdal(compress="jpeg", photometric="ycbcr"),
    "packbits.tif": of_gdal(GREY, compress="packbits"),
    "float.tif": of_gdal(COLOURS.astype(np.float32), compress="deflate", predictor=3),
    "masked.tif": with_mask,
    "pages-behind.tif": of_bytes(tiff([COLOURS], 8, 2, order=">", big=True)),
    "pillow.tif": of_pillow(compression="tiff_lzw"),
    "array.npy": lambda path: np.save(path, np.moveaxis(COLOURS, 0, -1)),
    "plain.dcm": of_pydicom,
    "deflated.dcm": deflated,
    "runs.dcm": in_runs,
    "jpeg.dcm": as_jpeg,
}


def all_of(path: Path, windows: list[tuple[int, int, int, int]]) -> list[np.ndarray]:
    raster = describe(path)
    parts = [read(path, window) for window in windows]
    about = (raster.nodata, raster.scales, raster.mask, raster.crs, raster.transform, raster.bits)
    return [np.array([repr(about)]), *(array for part in parts for array in part)]


@pytest.mark.parametrize("name", KINDS)
def test_a_file_that_was_cut_is_refused_or_read_right(tmp_path: Path, name: str) -> None:
    KINDS[name](tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    places = [
        *(int(len(whole) * share) for share in np.linspace(0.02, 0.99, 10)),
        *(len(whole) - n for n in (12, 4, 2, 1)),
    ]
    refused = 0
    for windows in (
        [(0, 0, SIDE, SIDE)],
        [(top, 10, 16, 40) for top in range(0, SIDE, 16)],
        [(40, 3, 20, 50), (1, 0, 9, 9)],
    ):
        exact = all_of(tmp_path / name, windows)
        for place in places:
            cut = tmp_path / f"cut-{place}-{name}"
            cut.write_bytes(whole[:place])
            try:
                found = all_of(cut, windows)
            except DataError as error:
                assert str(cut) in str(error)
                refused += 1
            else:
                assert all(map(np.array_equal, found, exact)), f"{place} of {len(whole)} bytes"
    assert refused >= 25
