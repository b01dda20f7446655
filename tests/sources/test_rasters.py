"""Image files: pixels and georeference as they were written, and what is refused with the way out."""

import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import rasterio
from image_files import NORTH_UP, UTM, write_dicom, write_raster
from PIL import Image, TiffImagePlugin
from raw_files import orientation_exif, png, tiff

from contrails.dataset.store import NOWHERE
from contrails.errors import DataError
from contrails.sources.rasters import describe, read, usual_names

RNG = np.random.default_rng(0)


def pixels(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return RNG.integers(1, 200, shape).astype(dtype)


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "options"),
    [
        ("a.tif", (4, 30, 41), "uint16", {}),
        ("a.tif", (2, 30, 41), "int16", {"tiled": True, "blockxsize": 16, "blockysize": 16}),
        ("a.png", (3, 20, 31), "uint8", {}),
        ("a.PNG", (1, 20, 31), "uint16", {}),
        ("a.jp2", (3, 64, 70), "uint8", {"QUALITY": "100", "REVERSIBLE": "YES"}),
    ],
)
def test_a_window_holds_what_was_written(
    tmp_path: Path, name: str, shape: tuple[int, ...], dtype: str, options: dict[str, object]
) -> None:
    bands = pixels(*shape, dtype=dtype)
    path = write_raster(tmp_path / name, bands, **options)
    found = describe(path)
    assert (found.height, found.width, found.dtype) == (*shape[1:], dtype)
    assert found.band_names == usual_names(shape[0])
    values, valid = read(path, (3, 5, 12, 9))
    assert np.array_equal(values, bands[:, 3:15, 5:14])
    assert valid.all()
    if name.endswith(("tif", "jp2")):
        assert rasterio.CRS.from_wkt(found.crs) == rasterio.CRS.from_string(UTM)
        assert found.transform == tuple(NORTH_UP)[:6]
    else:
        assert (found.crs, found.transform) == ("", NOWHERE)


def test_nodata_and_transparent_pixels_are_no_data(tmp_path: Path) -> None:
    bands = pixels(2, 8, 8)
    bands[:, 0, :3] = 0
    bands[0, 5, 5] = 0  # nodata in one band alone: the pixel is data
    _, valid = read(write_raster(tmp_path / "a.tif", bands, nodata=0), (0, 0, 8, 8))
    assert np.argwhere(~valid).tolist() == [[0, 0], [0, 1], [0, 2]]
    clear = np.full((8, 8), 255, np.uint8)
    clear[7] = 0
    path = write_raster(tmp_path / "a.png", np.concatenate([pixels(3, 8, 8), clear[None]]))
    values, valid = read(path, (0, 0, 8, 8))
    assert (len(values), describe(path).band_names) == (3, ("red", "green", "blue"))
    assert np.array_equal(valid, clear > 0)


def test_described_bands_keep_their_names(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", pixels(2, 8, 8))
    with rasterio.open(path, "r+") as file:
        file.descriptions = ("Red", "nir")
    assert describe(path).band_names == ("red", "nir")


@pytest.mark.parametrize("shape", [(9, 7), (9, 7, 4)])
def test_arrays_are_read_by_parts(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = pixels(*shape, dtype="int16")
    np.save(tmp_path / "a.npy", array)
    assert describe(tmp_path / "a.npy").band_names == usual_names(array.reshape(9, 7, -1).shape[2])
    values, valid = read(tmp_path / "a.npy", (2, 1, 5, 6))
    assert np.array_equal(values, array.reshape(9, 7, -1)[2:7, 1:7].transpose(2, 0, 1))
    assert valid.shape == (5, 6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_dicom_files_are_read_as_they_are_stored(tmp_path: Path, dtype: str) -> None:
    stored = pixels(6, 10, dtype=dtype)
    path = write_dicom(tmp_path / "a.dcm", stored)
    found = describe(path)
    assert (found.height, found.width, found.dtype, found.band_names) == (6, 10, dtype, ("grey",))
    assert found.transform == (0.1, 0.0, 0.0, 0.0, 0.2, 0.0)
    assert found.patient == "a"
    assert np.array_equal(read(path, (1, 2, 3, 4))[0], stored[None, 1:4, 2:6])


@pytest.mark.parametrize(("padding", "limit"), [(-2000, None), (-2000, -1990)])
def test_padding_of_a_dicom_file_is_no_data(tmp_path: Path, padding: int, limit: int | None) -> None:
    stored = pixels(6, 10, dtype="int16")
    stored[:, 0], stored[0, 1] = padding, -1995
    about = {} if limit is None else {"PixelPaddingRangeLimit": limit}
    path = write_dicom(tmp_path / "a.dcm", stored, PixelPaddingValue=padding, **about)
    counts, valid = read(path, (0, 0, 6, 10))
    assert np.array_equal(counts[0], stored)
    assert np.array_equal(valid, stored > (-1990 if limit else -2000))
    assert describe(path).nodata == padding


def _turned(path: Path) -> Path:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(8, 8, 3)).save(path, exif=exif)
    return path


def _truncated(path: Path) -> Path:
    write_raster(path, pixels(3, 64, 64))
    path.write_bytes(path.read_bytes()[:4000])
    return path


def _tiff(pages: int = 1, **tags: Sequence[int]) -> Callable[[Path], object]:
    numbers = {"orientation": 274}
    content = tiff([pixels(1, 8, 8)] * pages, 8, 1, tags=[(numbers[name], values) for name, values in tags.items()])
    return lambda path: path.write_bytes(content)


def _png(kind: bytes, content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(png(pixels(1, 8, 8), 8, 0, [(kind, content)]))


def _in_inks(path: Path) -> None:
    Image.fromarray(pixels(8, 8, 4), "CMYK").save(path)


def _virtual(path: Path) -> None:
    """Write a file whose pixels are those of another one."""
    write_raster(path.with_name("other.tif"), pixels(8, 8))
    path.write_text(
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{path.with_name('other.tif')}</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )


def _with_table(path: Path) -> None:
    write_dicom(path, pixels(8, 8))
    file = pydicom.dcmread(path)
    file.ModalityLUTSequence = [pydicom.Dataset()]
    file.save_as(path)


def _hole(path: Path) -> None:
    """Write an image without its second half, and with its end."""
    content = png(pixels(3, 64, 64), 8, 2)
    half, end = content.rindex(b"IDAT") - 4, content.rindex(b"IEND") - 4
    path.write_bytes(content[:half] + content[end:])


def _long_tag(path: Path) -> Path:
    """Write an image whose size of a pixel has more numbers than the file."""
    write_raster(path, pixels(8, 8))
    return _flip(path, struct.pack("<2HI", 33550, 12, 3), struct.pack("<2HI", 33550, 12, 3 + (31 << 16)))


def _odd_geokeys(path: Path) -> Path:
    """Write an image that says many times whether a pixel is an area or a point, and not how large it is."""
    write_raster(path, pixels(8, 8))
    _flip(path, struct.pack("<2HI", 33550, 12, 3), struct.pack("<2HI", 33551, 12, 3))
    return _flip(path, struct.pack("<3H", 1025, 0, 1), struct.pack("<3H", 1025, 0, 40193))


def _latin_units(path: Path) -> Path:
    """Write an image in a coordinate system whose name is no UTF-8."""
    write_raster(
        path,
        pixels(8, 8),
        crs=rasterio.CRS.from_proj4("+proj=laea +lat_0=50 +lon_0=7").to_wkt().replace("unknown", "Koln"),
    )
    return _flip(path, b"Koln", b"K\xf6ln")


def _jpeg(path: Path, **options: Any) -> bytes:
    # always the same: about one hole in ten leaves a code that is right, with other pixels
    noise = np.random.default_rng(0).integers(1, 200, (96, 96, 3), "uint8")
    Image.fromarray(noise).save(path, **options)
    return path.read_bytes()


def _jpeg_hole(path: Path) -> None:
    content = _jpeg(path)
    path.write_bytes(content[:2000] + content[2200:])


def _zero_tail(path: Path) -> None:
    content = _jpeg(path)
    path.write_bytes(content[:2000] + bytes(len(content) - 2000))


def _codestream_hole(path: Path) -> None:
    content = _jpeg(path, irreversible=False)
    path.write_bytes(content[:9000] + content[9200:])


def _turned_behind_fill_bytes(path: Path) -> None:
    _turned(path)
    _flip(path, b"\xff\xe1", b"\xff\xff\xff\xe1")


def _smaller_page(path: Path) -> None:
    path.write_bytes(tiff([pixels(1, 8, 8)] * 2, 8, 1, tags=[(254, [1])]))


def _stack(path: Path) -> None:
    about = TiffImagePlugin.ImageFileDirectory_v2()
    about[270] = "ImageJ=1.53\nimages=3\nslices=3\n"
    Image.fromarray(pixels(8, 8)).save(path, tiffinfo=about)
    path.write_bytes(path.read_bytes() + bytes(128))


def _cut_header(path: Path) -> None:
    content = write_dicom(path, pixels(8, 8)).read_bytes()
    path.write_bytes(content[: content.index(b"\x28\0\x10\0")])


def _archive(path: Path) -> Path:
    with path.open("wb") as file:
        np.savez(file, pixels(8, 8))
    return path


def _flipped(path: Path, old: bytes, new: bytes) -> Path:
    return _flip(write_dicom(path, pixels(8, 8)), old, new)


def _flip(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    return path


def _several_frames(path: Path) -> Path:
    return write_dicom(path, pixels(8, 8), NumberOfFrames=2)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.jpg", _turned, r"orientation tag 6.*exiftran"),
        ("a.tif", _tiff(orientation=[6]), r"orientation tag 6.*magick IN -auto-orient OUT"),
        ("a.tif", _tiff(orientation=[0]), r"orientation tag 0, expected 1 to 8; correct it: `tiffset -s 274 1 FILE`"),
        ("a.png", _png(b"eXIf", orientation_exif(3)), "orientation tag 3"),
        ("a.png", _png(b"acTL", b"\0\0\0\2\0\0\0\0"), "is an animation: expected one image"),
        (
            "a.tif",
            _tiff(pages=3),
            r"one image, found 3 \(GTIFF_DIR:1, GTIFF_DIR:2, GTIFF_DIR:3\); .*`gdal_translate GTIFF_DIR:1:\S+/a.tif",
        ),
        ("a.jpg", _turned_behind_fill_bytes, "orientation tag 6"),
        ("a.jpg", _jpeg_hole, "a damaged, truncated or another file .*[Cc]orrupt JPEG data"),
        ("a.jpg", _zero_tail, r"is truncated: its end \(the marker EOI\) is missing; get it again"),
        ("a.jp2", _zero_tail, "is truncated or damaged: a piece of its codestream is missing"),
        ("a.jp2", _codestream_hole, "its codestream .* is missing; get it again|a piece of its codestream is missing"),
        ("a.tif", _smaller_page, "has several pages: expected one image; .*tiffsplit"),
        ("a.tif", _stack, "expected one image, found a stack of 3 from ImageJ"),
        ("a.dcm", _cut_header, "or the file is truncated before it; get it again"),
        (
            "a.dcm",
            lambda path: write_dicom(path, pixels(8, 8, dtype="uint16"), BitsStored=12, HighBit=15),
            r"expected the highest bit of 12 \(BitsStored\) to be 11 \(HighBit\), found 15",
        ),
        ("a.tif", _in_inks, "expected grey, or colours as red, green and blue, found CMYK"),
        ("a.jpg", _in_inks, "expected grey, or colours as red, green and blue, found CMYK"),
        ("a.tif", _virtual, "a damaged file or another format, which begins with b'<VRTData'"),
        (
            "a.npy",
            lambda path: np.save(path, pixels(3, 40, 50)),
            r"found \(3, 40, 50\), where the bands seem to come first",
        ),
        ("a.npy", lambda path: np.save(path, pixels(8, 8).astype(str)), "expected an array of numbers, found <U"),
        ("a.dcm", _with_table, "expected a slope and an intercept, found a table of values"),
        ("a.tif", _truncated, "a damaged, truncated or another file"),
        ("a.png", _hole, "a damaged, truncated or another file .*libpng"),
        ("a.tif", _long_tag, r"is truncated: it has \d+ bytes, and its tags extend to byte \d+"),
        ("a.tif", _odd_geokeys, r"a damaged, truncated or another file \(Key GTRasterTypeGeoKey"),
        ("a.tif", _latin_units, r"a damaged, truncated or another file \('utf-8' codec"),
        (
            "a.tif",
            lambda path: path.write_text("no image"),
            "expected TIFF, PNG, .* found .*, which begins with b'no",
        ),
        ("a.npy", lambda path: path.write_bytes(b"\x93NUMPY\x01"), "expected a .npy file"),
        ("a.npy", _archive, r"expected one array, as numpy.save writes it, found an archive"),
        ("a.npy", lambda path: np.save(path, np.zeros((2, 2, 2, 2))), r"expected an array \(height, width\)"),
        ("a.png", lambda _: None, "expected an image at .*a.png, found none"),
        ("a.dcm", lambda path: path.write_text("no DICOM"), "expected a DICOM file"),
        (
            "a.dcm",
            lambda path: _flipped(path, b"0.2", b"0.x"),
            "expected a DICOM file.*convert string to float",
        ),
        ("a.dcm", lambda path: _flipped(path, b"US\x02\0", b"UX\x02\0"), "expected a DICOM file.*Unknown Value Rep"),
        ("a.dcm", lambda path: write_dicom(path, None), "expected a DICOM file with an image"),
        (
            "a.dcm",
            lambda path: write_dicom(path, pixels(8, 8), PixelData=None),
            "with pixels, found none|that pydicom can decode",
        ),
        ("a.dcm", lambda path: write_dicom(path, pixels(8, 8, dtype="uint32")), "pixels of 8 or 16 bits, found 32"),
        ("a.dcm", _several_frames, "expected one image, found 2 frames"),
        (
            "a.dcm",
            lambda path: write_dicom(path, pixels(8, 8), PhotometricInterpretation="PALETTE COLOR"),
            "photometric interpretation 'PALETTE COLOR'",
        ),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, make: object, message: str) -> None:
    make(tmp_path / name)  # type: ignore[operator]
    with pytest.raises(DataError, match=f"{message}") as caught:
        found = describe(tmp_path / name)
        read(tmp_path / name, (0, 0, found.height, found.width))
    assert str(tmp_path / name) in str(caught.value)


def test_an_error_is_that_of_its_file(tmp_path: Path) -> None:
    whole, cut = write_raster(tmp_path / "a.tif", pixels(3, 64, 64)), tmp_path / "cut.tif"
    found = describe(whole)
    content = whole.read_bytes()
    cut.write_bytes(content[:-100])
    with pytest.raises(DataError, match=r"cut.tif: .* damaged, truncated"):
        read(cut, (0, 0, 64, 64))
    assert describe(whole) == found


@pytest.mark.parametrize(("name", "module"), [("a.png", "rasterio"), ("a.dcm", "pydicom")])
def test_a_missing_library_names_the_extra(
    tmp_path: Path, name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_dicom(tmp_path / name, pixels(8, 8)) if module == "pydicom" else write_raster(
        tmp_path / name, pixels(8, 8)
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"reading {name} needs {module}.*pip install -e '\.\[scenes\]'` in the clone"):
        describe(path)
