"""Image files of every type, depth, layout, nodata and cut, with what they say: for tests of files of others.

The truth is what was written, where possible by libraries or code that the reader does not use; of JPEG files it is
what Pillow decodes.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pydicom
import rasterio
from hypothesis import strategies as st
from image_files import write_dicom, write_raster
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)
from raw_files import orientation_exif, png, tiff

T = TypeVar("T")
Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass
class Truth:
    """What a file says.

    Attributes:
        counts: as stored, (C, H, W).
        bits: of the counts, 0 where they are no integers.
        scale: of counts.
        offset: of counts.
        zero_is_white: counts fall with brightness.
        palette: counts are numbers of colours.
        nodata: count without data.
        inside: where a mask band or alpha says that pixels are data, bool (H, W).
        apart: how far the counts of two decoders may lie apart.
        refused: why the file must be refused, as a regular expression, or "".
    """

    counts: np.ndarray
    bits: int
    scale: float = 1.0
    offset: float = 0.0
    zero_is_white: bool = False
    palette: bool = False
    nodata: float | None = None
    inside: np.ndarray | None = None
    apart: int = 0
    refused: str = ""


def one_of(draw: Draw, choices: Sequence[T]) -> T:
    chosen: T = draw(st.sampled_from(choices))
    return chosen


def rarely(draw: Draw) -> bool:
    return bool(draw(st.integers(0, 9)) == 7)  # zero would be drawn often


def draw_counts(draw: Draw, dtype: str, bits: int, bands: int, labels: Sequence[int]) -> np.ndarray:
    """Counts of a type and depth; of a mask, some of its labels, in one band."""
    height, width = draw(st.integers(1, 80)), draw(st.integers(1, 80))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if labels:
        known = [label for label in labels if not bits or label < 1 << (bits - (dtype[0] == "i"))]
        return random.choice(known, (1, height, width)).astype(dtype)
    if np.dtype(dtype).kind in "fc":
        floats = random.normal(
            draw(st.integers(-300, 300)), one_of(draw, [0.0, 1e-3, 1.0, 50.0]), (bands, height, width)
        )
        if draw(st.booleans()):
            floats[random.random(floats.shape) < 0.1] = one_of(draw, [np.nan, np.inf, -np.inf, 6e4])
        return floats.astype(dtype)
    low, top = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dtype[0] == "i" else (0, (1 << bits) - 1)
    high = min(top, low + 2) if draw(st.booleans()) else top
    return random.integers(low, high, (bands, height, width), dtype=dtype, endpoint=True)


def an_array(path: Path, draw: Draw, labels: Sequence[int]) -> Truth:
    kinds = [
        "bool",
        "uint8",
        "int8",
        ">u2",
        "int16",
        "uint32",
        ">i4",
        "uint64",
        "float16",
        "float32",
        ">f8",
        "complex64",
    ]
    dtype = np.dtype(one_of(draw, kinds))
    bits = 1 if dtype.kind == "b" else 8 * dtype.itemsize if dtype.kind in "iu" else 0
    counts = draw_counts(
        draw, "uint8" if bits == 1 else dtype.newbyteorder("=").name, bits, draw(st.integers(1, 4)), labels
    )
    array = np.moveaxis(counts, 0, -1).astype(dtype)
    array = array[..., 0] if len(counts) == 1 and draw(st.booleans()) else array
    np.save(path.with_suffix(".npy"), np.asfortranarray(array) if draw(st.booleans()) else array)
    return Truth(counts, bits, refused="array of numbers" if dtype.kind == "c" else "")


def a_tiff_of_gdal(path: Path, draw: Draw, labels: Sequence[int]) -> Truth:
    dtype = one_of(
        draw, ["uint8", "uint16", "int16", "uint8", "uint16", "int8", "uint32", "int32", "float32", "float64"]
    )
    bits = 0 if dtype[0] == "f" else 8 * np.dtype(dtype).itemsize
    profile: dict[str, Any] = {"compress": one_of(draw, ["none", "deflate", "lzw", "zstd", "packbits", "lzma"])}
    if dtype[0] == "u" and draw(st.booleans()):
        bits = profile["NBITS"] = draw(st.integers(bits // 2 + 1 if bits > 8 else 1, bits - 1))
    if draw(st.booleans()):
        profile |= {"tiled": True, "blockxsize": 16, "blockysize": 16}
    profile |= {"interleave": one_of(draw, ["pixel", "band"]), "bigtiff": one_of(draw, ["yes", "no"])}
    profile |= {"endianness": one_of(draw, ["little", "big"])}
    if profile["compress"] in ("deflate", "lzw", "zstd") and "NBITS" not in profile:
        profile["predictor"] = one_of(draw, [1, 3 if dtype[0] == "f" else 2])
    counts = draw_counts(draw, dtype, bits, draw(st.integers(1, 4)), labels)
    truth = Truth(counts, bits)
    if len(counts) == 1 and dtype[0] == "u" and rarely(draw):
        truth.zero_is_white, profile["photometric"] = True, "miniswhite"
    else:
        profile["photometric"] = "minisblack"  # a fourth band would be taken for alpha
    says = one_of(draw, ["nothing", "nothing", "nodata", "mask", "scale"])
    if says == "nodata":
        truth.nodata = one_of(draw, [float(counts.flat[0]), 0.0, 1.0])
        truth.nodata = np.nan if dtype[0] == "f" and draw(st.booleans()) else truth.nodata
        if np.isinf(truth.nodata):
            truth.nodata = None
        profile["nodata"] = truth.nodata
    write_raster(path := path.with_suffix(".tif"), counts, **profile)
    if says == "mask":
        truth.inside = np.random.default_rng(counts.size).random(counts.shape[1:]) < 0.7
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
            file.write_mask(truth.inside)
    if says == "scale":
        truth.scale, truth.offset = one_of(draw, [0.01, 1.0, -0.5, 3.0]), one_of(draw, [0.0, 273.15, -7.0])
        with rasterio.open(path, "r+") as file:
            file.scales, file.offsets = (truth.scale,) * file.count, (truth.offset,) * file.count
        if dtype[0] == "f" and truth.zero_is_white:
            truth.refused = "zero is white"
    return truth


def a_tiff_of_bytes(path: Path, draw: Draw, labels: Sequence[int]) -> Truth:
    dtype, bits = one_of(draw, [("uint8", 1), ("uint8", 2), ("uint8", 4), ("uint8", 8), ("uint16", 16), ("int16", 16),
                                ("uint32", 32), ("float32", 32), ("float64", 64)])  # fmt: skip
    bands = 1 if bits < 8 else one_of(draw, [1, 1, 3])
    depth = 0 if dtype[0] == "f" else bits
    counts = draw_counts(draw, dtype, depth, bands, labels)
    truth, photometric, tags = Truth(counts, depth), 2 if bands == 3 and not labels else 1, []
    if len(counts) == 1 and dtype == "uint8":
        photometric = one_of(draw, [0, 1, 1, 3])
        truth.zero_is_white, truth.palette = photometric == 0, photometric == 3
        if truth.palette:
            tags.append((320, [257 * ((37 * n + 11) % 251) for n in range(3 << bits)]))
    if rarely(draw):
        orientation = draw(st.integers(0, 9))
        tags.append((274, [orientation]))
        truth.refused = "" if orientation == 1 else "orientation tag"
    pages = [counts] * (2 if rarely(draw) else 1)
    truth.refused = "expected one image, found 2" if len(pages) == 2 else truth.refused
    truth.refused = truth.refused or ("palette" if truth.palette and not labels else "")
    layout: dict[str, Any] = {
        "order": one_of(draw, "<>"),
        "big": draw(st.booleans()),
        "compressed": draw(st.booleans()),
    }
    content = tiff(pages, bits, photometric, rows_a_strip=draw(st.integers(1, 50)), tags=tags, **layout)
    path.with_suffix(".tif").write_bytes(content)
    return truth


def a_png_of_bytes(path: Path, draw: Draw, labels: Sequence[int]) -> Truth:
    of_labels = [(0, (1, 2, 4, 8, 16), 1), (3, (1, 2, 4, 8), 1)]
    others = [of_labels[0], (2, (8, 16), 3), (4, (8, 16), 2), (6, (8,), 4)]
    colour, depths, bands = one_of(draw, of_labels if labels else of_labels + others)
    bits = one_of(draw, depths)
    counts = draw_counts(draw, "uint16" if bits == 16 else "uint8", bits, bands, labels)
    truth, chunks = Truth(counts, bits, palette=colour == 3), []
    if colour == 3:
        colours = bytes((37 * n + 11) % 251 for n in range(3 << bits))
        chunks.append((b"PLTE", colours))
        truth.refused = "" if labels else "palette"
    elif colour in (4, 6):
        truth.counts, truth.inside = counts[:-1], counts[-1] > 0
    elif rarely(draw):
        clear = counts[:, 0, 0]
        chunks.append((b"tRNS", clear.astype(">u2").tobytes()))
        if colour == 0:
            truth.nodata = float(clear[0])
        else:
            truth.inside = (counts != clear[:, None, None]).any(axis=0)
    if rarely(draw):
        orientation = draw(st.integers(1, 8))
        chunks.append((b"eXIf", orientation_exif(orientation)))
        truth.refused = "orientation tag" if orientation > 1 else truth.refused
    if rarely(draw):
        chunks.append((b"acTL", b"\0\0\0\2\0\0\0\0"))
        truth.refused = "is an animation"
    filters = draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    path.with_suffix(".png").write_bytes(
        png(counts, bits, colour, chunks, interlaced=draw(st.booleans()), filters=filters)
    )
    return truth


def a_file_of_pillow(path: Path, draw: Draw, labels: Sequence[int]) -> Truth:
    """JPEG, JPEG 2000, BMP, PNG or TIFF, of 8 bits; of masks also palettes and single bits."""
    if labels:
        return _a_mask_of_pillow(path, draw, labels)
    ending = one_of(draw, [".jpg", ".jpg", ".jp2", ".bmp", ".png", ".tif"])
    mode = one_of(draw, ["L", "RGB", "RGB", "CMYK"] if ending in (".jpg", ".tif") else ["L", "RGB"])
    bands = {"L": 1, "RGB": 3, "CMYK": 4}[mode]
    counts = draw_counts(draw, "uint8", 8, bands, ())
    truth, image = Truth(counts, 8), Image.fromarray(counts[0] if bands == 1 else np.moveaxis(counts, 0, -1), mode)
    options: dict[str, Any] = {}
    if ending == ".jpg":
        options = {"quality": draw(st.integers(30, 100)), "progressive": draw(st.booleans()), "subsampling": 0}
        if draw(st.booleans()):
            exif = Image.Exif()
            exif[274] = orientation = one_of(draw, [1, 1, 1, 6])
            options["exif"], truth.refused = exif, "orientation tag" if orientation == 6 else ""
    if ending == ".jp2":
        options = {"irreversible": False, "num_resolutions": 1}
    if ending == ".tif":
        options = {"compression": one_of(draw, ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])}
    truth.refused = truth.refused or ("found CMYK" if bands == 4 else "")
    image.save(path.with_suffix(ending), **options)
    if ending == ".jpg":
        with Image.open(path.with_suffix(ending)) as again:
            decoded = np.asarray(again)
        truth.counts, truth.apart = decoded[None] if bands == 1 else np.moveaxis(decoded, -1, 0), 1
    return truth


def _a_mask_of_pillow(path: Path, draw: Draw, labels: Sequence[int]) -> Truth:
    mode, ending = one_of(draw, ["L", "P", "1"]), one_of(draw, [".bmp", ".png", ".tif"])
    counts = draw_counts(draw, "uint8", 1 if mode == "1" else 8, 1, labels)
    image = Image.fromarray(counts[0] > 0 if mode == "1" else counts[0])
    if mode == "P":
        image.putpalette([(37 * number + 11) % 251 for number in range(768)])
    image.save(path.with_suffix(ending))
    return Truth(counts, 1 if mode == "1" else 8)


def a_jpeg_2000_of_gdal(path: Path, draw: Draw, labels: Sequence[int]) -> Truth:
    dtype, bits = one_of(
        draw, [("uint8", 8), ("uint8", 4), ("uint8", 1), ("uint16", 16), ("uint16", 12), ("int16", 16)]
    )
    counts = draw_counts(draw, dtype, bits, one_of(draw, [1, 3]), labels)
    blocks = {"BLOCKXSIZE": 64, "BLOCKYSIZE": 64} if min(counts.shape[1:]) > 64 and draw(st.booleans()) else {}
    lossless = {"QUALITY": 100, "REVERSIBLE": "YES", "YCC": "NO", "RESOLUTIONS": 1}
    write_raster(path.with_suffix(".jp2"), counts, NBITS=bits, **lossless, **blocks)
    return Truth(counts, bits)


def a_dicom_file(path: Path, draw: Draw, labels: Sequence[int]) -> Truth:
    kinds = [("uint8", 8), ("uint8", 5), ("uint16", 16), ("uint16", 12), ("int16", 16), ("int16", 12), ("uint32", 32)]
    dtype, bits = one_of(draw, kinds)
    counts = draw_counts(draw, dtype, bits, 1, labels)
    kind = one_of(draw, ["MONOCHROME2", "MONOCHROME2", "MONOCHROME1", "PALETTE COLOR"])
    about: dict[str, Any] = {"BitsStored": bits, "HighBit": bits - 1, "PhotometricInterpretation": kind}
    truth = Truth(counts, bits, zero_is_white=kind == "MONOCHROME1")
    if draw(st.booleans()):
        truth.scale, truth.offset = one_of(draw, [(1, 0), (-1, (1 << bits) - 1), (1, -1024), (0.5, 3)])
        about |= {"RescaleSlope": truth.scale, "RescaleIntercept": truth.offset}
        if draw(st.booleans()):
            about["RescaleType"], truth.zero_is_white = "HU", False
    if rarely(draw):
        about["NumberOfFrames"], truth.refused = 2, "found 2 frames"
    truth.refused = truth.refused or ("photometric interpretation" if kind.startswith("P") else "")
    truth.refused = "of 8 or 16 bits" if dtype == "uint32" else truth.refused
    write_dicom(path := path.with_suffix(".dcm"), counts[0], **about)
    how = one_of(draw, ["as it is", "as it is", "deflated", "implicit", "runs", "JPEG", "JPEG 2000"])
    if not truth.refused and how != "as it is":
        _encode(path, how, truth)
    return truth


def _encode(path: Path, how: str, truth: Truth) -> None:
    file = pydicom.dcmread(path)
    if how in ("deflated", "implicit"):
        syntax = DeflatedExplicitVRLittleEndian if how == "deflated" else ImplicitVRLittleEndian
        file.file_meta.TransferSyntaxUID = syntax
        file.save_as(path, implicit_vr=how == "implicit", little_endian=True)
        return
    if how == "runs":
        file.compress(RLELossless)
    elif truth.counts.dtype == np.uint8 and truth.bits == 8:
        buffer = io.BytesIO()
        if how == "JPEG":
            Image.fromarray(truth.counts[0]).save(buffer, "JPEG", quality=90)
            truth.counts = np.asarray(Image.open(buffer))[None]
        else:
            Image.fromarray(truth.counts[0]).save(
                buffer, "JPEG2000", irreversible=False, no_jp2=True, num_resolutions=1
            )
        file.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if how == "JPEG" else JPEG2000Lossless
        file.PixelData = encapsulate([buffer.getvalue()])
        file["PixelData"].is_undefined_length = True
    file.save_as(path)


MAKERS = (
    an_array,
    a_tiff_of_gdal,
    a_tiff_of_bytes,
    a_png_of_bytes,
    a_file_of_pillow,
    a_jpeg_2000_of_gdal,
    a_dicom_file,
)
