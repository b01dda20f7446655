"""Masks of scenes: every value is a class or is said not to count, and none is lost because of what a file says."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from image_files import write_raster
from PIL import Image

from contrails.cli.main import cli
from contrails.dataset.store import IGNORE, Dataset, open_dataset
from contrails.errors import DataError
from contrails.sources.masks import parse, read_classes, said, table_of
from contrails.sources.rasters import describe

SIDE = 40
STRIPES = np.repeat(np.array([0, 1], np.uint8), SIDE // 2)[None].repeat(SIDE, 0)
"""Left half 0, right half 1."""

GIVEN = ((0, 0, 0), (1, 1, 1))


def write_with_band(path: Path, mask: np.ndarray, inside: np.ndarray) -> Path:
    """Write a mask whose file has a mask band of its own."""
    write_raster(path, mask)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(path, "r+") as file:
        file.write_mask(inside)
    return path


def prepare(raw: Path, out: Path, *options: str) -> Dataset:
    arguments = ["prepare", str(raw), str(out), "--layout=scenes", "--workers=1", "--tile=40", "--overlap=0", *options]
    cli(arguments, standalone_mode=False)
    return open_dataset(out)


def classes_of(path: Path, given: tuple[tuple[int, int, int], ...] = GIVEN) -> np.ndarray:
    mask = describe(path)
    table_of([mask], given)
    return read_classes(mask, (0, 0, mask.height, mask.width), given)


def test_a_table_says_what_became_of_each_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, values in (("a", (0, 255)), ("b", (0, 128))):
        write_raster(tmp_path / f"scenes/{name}.tif", np.ones((3, SIDE, SIDE), np.uint8))
        write_raster(tmp_path / f"masks/{name}.tif", np.array(values, np.uint8)[STRIPES], nodata=7)
    mask = np.full((SIDE, SIDE), 7, np.uint8)
    mask[:10] = 0
    write_raster(tmp_path / "masks/b.tif", mask, nodata=7)
    dataset = prepare(tmp_path, tmp_path / "d.h5")
    assert [np.bincount(votes.ravel(), minlength=256)[[0, 1, IGNORE]].tolist() for votes in dataset.votes] == [
        [800, 800, 0],
        [400, 0, 1200],
    ]
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "values of 2 masks:",
        "  0 -> 0: 1,200 pixels",
        "  255 -> 1: 800 pixels",
        "  nodata -> ignore: 1,200 pixels",
    ]


def test_palettes_and_single_bits_are_classes(tmp_path: Path) -> None:
    image = Image.fromarray(STRIPES).convert("P")
    image.putpalette([255, 255, 255, 200, 0, 0])
    for name in ("palette.png", "palette.tif"):
        image.save(tmp_path / name)
        assert np.array_equal(classes_of(tmp_path / name), STRIPES)
    write_raster(tmp_path / "bit.tif", STRIPES, NBITS=1)
    write_raster(tmp_path / "white.tif", STRIPES, NBITS=1, photometric="miniswhite")
    with pytest.raises(
        DataError, match=r"zero is white in 1 of 1 masks; .*: --mask-values 0=1,1=0 if the class is displayed"
    ):
        table_of([describe(tmp_path / "white.tif")], ())
    Image.fromarray(STRIPES > 0).save(tmp_path / "bit.png")
    for name in ("bit.tif", "bit.png"):
        assert np.array_equal(classes_of(tmp_path / name), STRIPES)
    assert np.array_equal(classes_of(tmp_path / "white.tif", ((0, 0, 1), (1, 1, 0))), 1 - STRIPES)


@pytest.mark.parametrize("bits", [1, 8])
def test_a_palette_whose_zero_is_white_needs_a_word(tmp_path: Path, bits: int) -> None:
    image = Image.fromarray(1 - STRIPES).convert("P")
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(tmp_path / "a.png", bits=bits)
    with pytest.raises(DataError, match="zero is white in 1 of 1 masks") as caught:
        table_of([describe(tmp_path / "a.png")], ())
    shown, stored = [parse(text) for text in re.findall("--mask-values ([^ ]+)", str(caught.value))]
    assert np.array_equal(classes_of(tmp_path / "a.png", shown), STRIPES)
    assert np.array_equal(classes_of(tmp_path / "a.png", stored), 1 - STRIPES)


def test_nodata_counts_more_than_a_range_and_less_than_a_value(tmp_path: Path) -> None:
    mask = np.where(np.arange(SIDE)[:, None] < 10, 200, STRIPES * 255).astype(np.uint8)
    path = write_raster(tmp_path / "a.tif", mask, nodata=200)
    soft = parse("0-127=0,128-255=1")
    assert np.array_equal(classes_of(path, soft), np.where(mask == 200, IGNORE, STRIPES))
    assert ("nodata", IGNORE, 400) in table_of([describe(path)], soft)
    assert (classes_of(path, parse("0-127=0,200=1,201-255=1"))[:10] == 1).all()


@pytest.mark.parametrize(("nodata", "middle"), [(0, "0=0,1-127=0"), (255, "128-254=1,255=1")])
def test_a_range_is_never_lost_to_nodata_without_a_word(tmp_path: Path, nodata: int, middle: str) -> None:
    path = write_raster(tmp_path / "a.tif", STRIPES * np.uint8(255), nodata=nodata)
    with pytest.raises(
        DataError, match=f"found only its nodata value {nodata} in all masks; give its meaning"
    ) as caught:
        table_of([describe(path)], parse("0-127=0,128-255=1"))
    as_class, left_out = [parse(text) for text in re.findall("--mask-values ([^ ]+)", str(caught.value))]
    assert middle in said(as_class)
    assert np.array_equal(classes_of(path, as_class), STRIPES)
    assert np.array_equal(classes_of(path, left_out) == IGNORE, (nodata == 255) == STRIPES)


@pytest.mark.parametrize("text", ["0=0,256=1,1=1", "0=0,-1=ignore,1=1", "-9--1=ignore,0=0,1-999=1"])
def test_values_beyond_the_type_of_a_mask_are_not_there(tmp_path: Path, text: str) -> None:
    assert np.array_equal(classes_of(write_raster(tmp_path / "a.tif", STRIPES), parse(text)), STRIPES)


def test_every_value_of_a_byte_has_a_meaning(tmp_path: Path) -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = write_raster(tmp_path / "a.tif", values)
    assert np.array_equal(classes_of(path, parse(",".join(f"{n}={n % 2}" for n in range(256)))), values % 2)


@pytest.mark.parametrize(("value", "dtype"), [(65535, "uint16"), (256, "uint16"), (-1, "int16")])
def test_a_class_of_another_value_is_offered_as_one(tmp_path: Path, value: int, dtype: str) -> None:
    path = write_raster(tmp_path / "a.tif", np.where(STRIPES, value, 0).astype(dtype))
    with pytest.raises(DataError, match=f"--mask-values 0=0,{value}=1 if it is the class, --mask-values ") as caught:
        table_of([describe(path)], ())
    given = parse(re.findall("--mask-values ([^ ]+)", str(caught.value))[0])
    assert np.array_equal(classes_of(path, given), STRIPES)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64"])
def test_classes_of_any_type(tmp_path: Path, dtype: str) -> None:
    path = write_raster(tmp_path / "a.tif", STRIPES.astype(dtype), nodata=None)
    assert np.array_equal(classes_of(path), STRIPES)


def test_what_is_given_counts_where_a_file_calls_it_nodata(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", STRIPES, nodata=0)
    assert np.array_equal(classes_of(path), STRIPES)
    left_out = ((0, 0, IGNORE), (1, 1, 1))
    assert np.array_equal(classes_of(path, left_out), np.where(STRIPES, 1, IGNORE))
    floats = np.where(STRIPES, 1, np.nan).astype(np.float32)
    path = write_raster(tmp_path / "b.tif", floats, nodata=np.nan)
    assert np.array_equal(classes_of(path), np.where(STRIPES, 1, IGNORE))
    assert table_of([describe(path)], ()) == [("1", 1, 800), ("nodata", IGNORE, 800)]


def test_a_mask_band_says_where_nothing_is_known(tmp_path: Path) -> None:
    inside = np.ones((SIDE, SIDE), bool)
    inside[:10] = False
    path = write_with_band(tmp_path / "a.tif", STRIPES, inside)
    assert np.array_equal(classes_of(path), np.where(inside, STRIPES, IGNORE))
    rows = [("0", 0, 600), ("1", 1, 600), ("outside of a mask band or alpha", IGNORE, 400)]
    assert table_of([describe(path)], ()) == rows


def test_given_meanings_are_told_as_they_are_typed() -> None:
    meanings = ((0, 127, 0), (128, 255, 1), (-7, -7, IGNORE), (-20, -10, 0))
    assert said(meanings) == "0-127=0,128-255=1,-7=ignore,-20--10=0"
    assert parse(said(meanings)) == meanings


@pytest.mark.parametrize("text", ["", "0", "0=2", "0=0,0=1", "0-9=0,5=1", "9-0=1", "a=1", "0=0,", "1.5=1"])
def test_what_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"expected each value once with 0, 1 or ignore, .*, such as 0-127=0,128-255=1"):
        parse(text)


def test_soft_edges_are_cut_by_ranges(tmp_path: Path) -> None:
    soft = np.linspace(0, 255, SIDE).astype(np.uint8)[None].repeat(SIDE, 0)
    path = write_raster(tmp_path / "a.png", soft)
    with pytest.raises(DataError, match="expected the values 0, 1, 255, found 6, 13, "):
        table_of([describe(path)], ())
    assert np.array_equal(classes_of(path, parse("0-127=0,128-255=1")), soft > 127)
    assert table_of([describe(path)], parse("0-127=0,128-255=1")) == [("0-127", 0, 800), ("128-255", 1, 800)]


def test_three_equal_channels_are_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    colours = np.stack([STRIPES * np.uint8(255)] * 3)
    write_raster(tmp_path / "scenes/a.png", np.ones((3, SIDE, SIDE), np.uint8))
    write_raster(tmp_path / "masks/a.png", colours)
    assert np.array_equal(prepare(tmp_path, tmp_path / "d.h5").votes[0], STRIPES)
    assert "  255 -> 1: 800 pixels" in capsys.readouterr().out
    colours[1, 7, 30] = 0
    write_raster(tmp_path / "masks/a.png", colours)
    with pytest.raises(DataError, match=r"one channel, or three that are equal, found 255, 0, 255 at row 7, column 30"):
        prepare(tmp_path, tmp_path / "e.h5")


def _floats(value: float) -> Callable[[Path], Path]:
    mask = STRIPES.astype(np.float32)
    mask[:, 19:21] = value
    return lambda path: write_raster(path, mask)


def _alpha(path: Path) -> Path:
    """A mask drawn onto nothing: where there is no class it is transparent."""
    Image.fromarray(np.dstack([STRIPES, STRIPES * 255]), "LA").save(path.with_suffix(".png"))
    return path.with_suffix(".png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_floats(0.5), r"expected the values 0, 1, 255, found 0.5 \(float32\); .* nearest neighbours"),
        (_floats(np.nan), r"expected the values 0, 1, 255, found nan \(float32\); .*-a_nodata nan FILE"),
        (_floats(np.inf), r"expected the values 0, 1, 255, found inf \(float32\)"),
        (_floats(2), r"found 2 \(float32\); give their meanings, such as --mask-values 0=0,1=1,255=1,2=ignore"),
        (
            lambda path: write_raster(path, np.linspace(0, 1, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.float32)),
            r"found 0.000625391, .*, \.\.\. \(float32\)",
        ),
        (
            lambda path: write_raster(path, STRIPES, nodata=0),
            "not the value of a class, found 0; .* --mask-values 0=0,1=1 makes .* --mask-values 0=ignore,1=1",
        ),
        (
            lambda path: write_raster(path, STRIPES * np.uint8(255), nodata=255),
            "not the value of a class, found 255; .* --mask-values 0=0,255=1 makes .*, --mask-values 0=0,255=ignore",
        ),
        (
            lambda path: write_with_band(path, STRIPES, STRIPES > 0),
            r"the value 0, found that the file's mask band .* `gdal_translate -b 1 -mask none \S+/a.tif OUT.tif`",
        ),
        (_alpha, "valid pixels of the value 0, found that the file's alpha masks"),
    ],
)
def test_a_class_is_never_lost_without_a_word(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path / "a.tif")
    with pytest.raises(DataError, match=message) as caught:
        table_of([describe(path)], ())
    assert str(path) in str(caught.value)


def test_values_of_several_masks_do_not_fit_together(tmp_path: Path) -> None:
    masks = [write_raster(tmp_path / f"{top}.tif", STRIPES * np.uint8(top)) for top in (1, 255)]
    with pytest.raises(DataError, match=r"found 0, 1 and 255 .* 1 in \S+/1.tif, 255 in \S+/255.tif;") as caught:
        table_of([describe(mask) for mask in masks], ())
    assert "--mask-values 0=0,1=1,255=1 if both are the class" in str(caught.value)
    given = ((0, 0, 0), (1, 1, 1), (255, 255, 1))
    assert [count for *_, count in table_of([describe(mask) for mask in masks], given)] == [1600, 800, 800]


def test_the_first_mask_that_is_wrong_ends_the_search(tmp_path: Path) -> None:
    masks = [describe(write_raster(tmp_path / f"{number}.tif", STRIPES + np.uint8(number))) for number in range(12)]
    with pytest.raises(DataError, match=r"/1.tif: expected the values 0, 1, 255, found 2"):
        table_of(masks, ())
