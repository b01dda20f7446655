"""Radiometry: counts mean the same in all files of a dataset, or they are refused, or packed with one scale."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from image_files import write_dicom, write_raster

from contrails.cli.main import cli
from contrails.dataset.layout import Values
from contrails.dataset.store import IGNORE, Dataset, open_dataset
from contrails.errors import DataError
from contrails.sources.radiometry import is_fraction, packed_integers, values_of
from contrails.sources.rasters import Raster, describe, read
from contrails.sources.spans import choose_values

RNG = np.random.default_rng(5)


def counts(top: int, *shape: int, dtype: str = "uint8") -> np.ndarray:
    """Return counts that go up to `top`."""
    made = RNG.integers(0, top + 1, shape or (32, 32)).astype(dtype)
    made.flat[:2] = 0, top
    return made


def values_in_file(path: Path, values: Values | None = None) -> np.ndarray:
    """Return the values of an image as a dataset would have them."""
    raster = describe(path)
    values = values or values_of([raster])
    packed, valid = packed_integers(*read(path, (0, 0, raster.height, raster.width)), raster, values)
    assert valid.all()
    assert packed.dtype == values.dtype
    found: np.ndarray = packed * values.scale_factor + values.add_offset
    return found


def scaled(path: Path, bands: np.ndarray, scale: float, offset: float, units: str = "") -> Path:
    write_raster(path, bands)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (scale,) * file.count, (offset,) * file.count
        file.units = (units,) * file.count
    return path


@pytest.mark.parametrize(("bits", "dtype"), [(1, "uint8"), (2, "uint8"), (4, "uint8"), (9, "uint16"), (12, "uint16")])
@pytest.mark.parametrize("ending", ["tif", "jp2"])
def test_counts_are_shares_of_what_their_bits_hold(tmp_path: Path, bits: int, dtype: str, ending: str) -> None:
    stored = counts((1 << bits) - 1, 64, 64, dtype=dtype)
    lossless = {"QUALITY": 100, "REVERSIBLE": "YES"} if ending == "jp2" else {}
    path = write_raster(tmp_path / f"a.{ending}", stored, NBITS=bits, **lossless)
    assert np.allclose(values_in_file(path)[0], stored / ((1 << bits) - 1))
    assert is_fraction(values_of([describe(path)]))


def test_counts_fall_where_zero_is_white(tmp_path: Path) -> None:
    stored = counts(255)
    white = write_raster(tmp_path / "white.tif", stored, photometric="miniswhite")
    black = write_raster(tmp_path / "black.tif", 255 - stored)
    assert np.array_equal(values_in_file(white), values_in_file(black))
    bits = write_raster(tmp_path / "bits.tif", stored & 1, NBITS=1, photometric="miniswhite")
    assert np.array_equal(values_in_file(bits)[0], 1 - (stored & 1))


@pytest.mark.parametrize("dtype", ["uint16", "int16"])
@pytest.mark.parametrize(
    ("kind", "slope", "intercept", "rises"),
    [
        ("MONOCHROME2", None, None, True),
        ("MONOCHROME1", None, None, False),
        ("MONOCHROME2", 1, 0, True),
        ("MONOCHROME2", -1, 4095, False),
        ("MONOCHROME1", -1, 4095, True),
        ("MONOCHROME1", 1, 0, False),
    ],
)
def test_radiographs_are_bright_where_the_film_is(
    tmp_path: Path, dtype: str, kind: str, slope: int | None, intercept: int | None, rises: bool
) -> None:
    low, top = (0, 4095) if dtype == "uint16" else (-2048, 2047)
    intercept = -1 if intercept and dtype == "int16" else intercept
    stored = (counts(4095, dtype=dtype) + low).astype(dtype)
    scale = {} if slope is None else {"RescaleSlope": slope, "RescaleIntercept": intercept}
    path = write_dicom(tmp_path / "a.dcm", stored, BitsStored=12, HighBit=11, PhotometricInterpretation=kind, **scale)
    shown = stored.astype(int) if rises else low + top - stored.astype(int)
    assert np.allclose(values_in_file(path)[0], shown / top)


def test_hounsfield_units_are_values(tmp_path: Path) -> None:
    stored = counts(4095, dtype="uint16")
    about: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "Modality": "CT", "RescaleSlope": 1}
    for kind in ("MONOCHROME1", "MONOCHROME2"):
        path = write_dicom(
            tmp_path / f"{kind}.dcm", stored, RescaleIntercept=-1024, PhotometricInterpretation=kind, **about
        )
        assert np.array_equal(values_in_file(path)[0], stored.astype(float) - 1024)
        assert values_of([describe(path)]) == Values("uint16", 1.0, -1024.0, "HU")


def test_a_scale_of_the_file_is_kept(tmp_path: Path) -> None:
    stored = counts(60_000, 2, 32, 32, dtype="uint16")
    path = scaled(tmp_path / "a.tif", stored, 0.01, 3, "kelvin")
    assert values_of([describe(path)]) == Values("uint16", 0.01, 3.0, "K")
    assert np.array_equal(values_in_file(path), stored * 0.01 + 3)
    falling = scaled(tmp_path / "b.tif", stored, -0.01, 3)
    assert np.allclose(values_in_file(falling), 3 - stored * 0.01)


def prepare(raw: Path, out: Path, *options: str) -> Dataset:
    arguments = ["prepare", str(raw), str(out), "--layout=scenes", "--workers=1", "--tile=32", "--overlap=0"]
    cli([*arguments, "--split=test", *options], standalone_mode=False)
    return open_dataset(out)


def test_numbers_are_packed_with_one_scale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = {name: RNG.normal(280 + 10 * index, 5, (2, 32, 32)) for index, name in enumerate("abc")}
    for name, image in images.items():
        write_raster(tmp_path / f"scenes/{name}.tif", image.astype(np.float32), nodata=-9999)
    dataset = prepare(tmp_path, tmp_path / "d.h5")
    exact = np.stack([image.astype(np.float32) for image in images.values()])
    found = dataset.bands[:, 0] * dataset.scale_factor + dataset.add_offset
    assert dataset.bands.dtype == np.uint16
    assert np.abs(found - exact).max() <= dataset.scale_factor / 2 * (1 + 1e-9)
    assert dataset.scale_factor == pytest.approx((exact.max() - exact.min()) / 65_534)
    option = dataset.options.split()[-1]
    assert option in capsys.readouterr().out
    again = prepare(tmp_path, tmp_path / "again.h5", option)
    assert again.fingerprint == dataset.fingerprint
    assert (tmp_path / "again.h5").read_bytes() == (tmp_path / "d.h5").read_bytes()


def test_the_scale_is_that_of_the_training_scenes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, top in (("a", 1.0), ("b", 2.0)):
        write_raster(tmp_path / f"scenes/{name}.tif", np.linspace(0, top, 1024, dtype=np.float32).reshape(32, 32))
        write_raster(tmp_path / f"masks/{name}.tif", np.zeros((32, 32), np.uint8))
    (tmp_path / "filelists").mkdir()
    for subset, name in (("train", "a"), ("val", "b")):
        (tmp_path / f"filelists/{subset}.csv").write_text(f"{name}.tif\n")
    dataset = prepare(tmp_path, tmp_path / "d.h5", "--split=train")
    assert dataset.scale_factor == pytest.approx(1 / 65_534)
    assert dataset.bands[1].max() == 65_535
    assert (
        "values range from 0 to 2; a fraction of about 0.5 is outside of --range=0.0,1.0 and is clipped" in caplog.text
    )


def test_values_of_one_kind_are_packed(tmp_path: Path) -> None:
    for name, value in (("a", 0.0), ("b", -1e30), ("c", 7.5)):
        path = write_raster(tmp_path / f"{name}.tif", np.full((8, 8), value, np.float64))
        choice = choose_values([describe(path)], [describe(path)], [], None)
        assert values_in_file(path, choice.values) == pytest.approx(value)
    write_raster(tmp_path / "d.tif", np.array([[-1e308, 1e308]]))
    raster = describe(tmp_path / "d.tif")
    with pytest.raises(DataError, match=r"a finite range of values, found -1e\+308 to 1e\+308; give --range"):
        choose_values([raster], [raster], [], None)


def test_what_is_not_a_number_does_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = RNG.normal(0, 1, (2, 32, 32)).astype(np.float32)
    image[0, :4], image[1, 4:6], image[:, 6] = np.nan, np.inf, -9999
    write_raster(tmp_path / "scenes/a.tif", image, nodata=-9999)
    dataset = prepare(tmp_path, tmp_path / "d.h5")
    assert "192 values are NaN or infinite: their pixels are ignored" in caplog.text
    assert (dataset.votes[0, :7] == IGNORE).all()
    assert not dataset.votes[0, 7:].any()
    assert not dataset.bands[0, 0, :, :7].any()
    assert dataset.bands[0, 0, :, 7:].all()  # 0 stands for no data alone


def test_values_far_beyond_the_others_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = RNG.uniform(0, 1, (32, 40)).astype(np.float32)
    image[0, 0] = 1e6
    write_raster(tmp_path / "scenes/a.tif", image)
    dataset = prepare(tmp_path, tmp_path / "d.h5")
    assert "and is clipped" in caplog.text
    assert dataset.scale_factor < 6 / 65_534
    assert dataset.bands[0, 0, 0, 0, 0] == 65_535
    prepare(tmp_path, tmp_path / "e.h5", "--range=0,2000000")


def test_files_of_several_scales_are_packed_with_one(tmp_path: Path) -> None:
    eight, four = counts(255), counts(15)
    write_raster(tmp_path / "scenes/a.tif", eight)
    write_raster(tmp_path / "scenes/b.tif", four, NBITS=4)
    with pytest.raises(DataError, match=r"expected 8 bits of uint8 as in most .*, found 4 bits .*--range 0,1"):
        prepare(tmp_path, tmp_path / "d.h5")
    dataset = prepare(tmp_path, tmp_path / "d.h5", "--range=0,1")
    found = dataset.bands[:, 0, 0] * dataset.scale_factor + dataset.add_offset
    assert np.allclose(found, np.stack([eight / 255, four / 15]), atol=1 / 65_534)


def _several(first: Callable[[Path], object], second: Callable[[Path], object]) -> Callable[[Path], list[Raster]]:
    def make(folder: Path) -> list[Raster]:
        for name, write in (("a", first), ("b", second)):
            write(folder / f"{name}.tif")
        return [describe(folder / "a.tif"), describe(folder / "b.tif")]

    return make


def _plain(path: Path) -> object:
    return write_raster(path, counts(255))


def _floats(path: Path) -> object:
    return write_raster(path, counts(255).astype(np.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            _several(_plain, lambda path: scaled(path, counts(255), 0.1, 0)),
            "b.tif: expected counts without a scale as in most of the images, found a scale",
        ),
        (_several(_plain, _floats), "b.tif: expected counts without a scale .*, found a scale"),
        (
            _several(
                lambda path: scaled(path, counts(255), 0.1, 0, "K"), lambda path: scaled(path, counts(255), 0.1, 0, "m")
            ),
            "b.tif: expected values in K as in most of the images, found values in m",
        ),
        (
            _several(lambda path: scaled(path, counts(255), 0.1, 0), lambda path: scaled(path, counts(255), 0.2, 0)),
            r"b.tif: expected the scale and offset \(0.1, 0.0\) .*, found the scale and offset \(0.2, 0.0\).*--range",
        ),
        (
            _several(lambda path: write_raster(path, counts(255).astype(np.complex64)), _plain),
            "a.tif: expected integers or floating-point numbers, found complex64",
        ),
        (_several(lambda path: write_raster(path, np.full((8, 8), np.nan, np.float32)), _floats), ""),
    ],
)
def test_files_that_mean_different_things_are_refused(
    tmp_path: Path, make: Callable[[Path], list[Raster]], message: str
) -> None:
    rasters = make(tmp_path)
    if not message:
        rasters, message = rasters[:1], "a.tif: expected numbers, found no data in 1 files; check"
    with pytest.raises(DataError, match=message):
        choose_values(rasters, rasters, [], None)


def test_bands_of_several_scales_need_one(tmp_path: Path) -> None:
    write_raster(tmp_path / "a.tif", counts(255, 2, 8, 8))
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.scales = (0.1, 0.2)
    raster = describe(tmp_path / "a.tif")
    with pytest.raises(DataError, match=r"expected one scale and offset for all bands, found \(0.1.*\(0.2.*--range"):
        values_of([raster])
    stored, _ = read(raster.path, (0, 0, 8, 8))
    found = values_in_file(raster.path, values_of([raster], (0.0, 60.0)))
    assert np.allclose(found, stored * np.array([0.1, 0.2])[:, None, None], atol=60 / 65_534)


@pytest.mark.parametrize("text", ["1", "1,0", "0,nan", "a,b", "0,1,2", "1,1"])
def test_a_range_is_two_numbers(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli(["prepare", "raw", "d.h5", "--layout=scenes", f"--range={text}"])
    assert "expected the smallest and the largest value" in " ".join(capsys.readouterr().err.split())
