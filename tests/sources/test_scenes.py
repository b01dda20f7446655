"""The layout scenes: tiles that make up their scenes, file lists kept, and files that do not fit together."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from image_files import UTM, write_raster
from rasterio.rio.main import main_group as rio
from rasterio.transform import from_origin

from contrails.cli.main import cli
from contrails.dataset.layout import target_of
from contrails.dataset.store import IGNORE, Dataset, Placement, open_dataset
from contrails.errors import DataError
from contrails.folds.filelists import leaks, read_filelist
from contrails.sources.rasters import describe, read
from contrails.sources.scenes import SceneOptions

RNG = np.random.default_rng(2)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(1, 60_000, shape).astype(np.uint16)


def write_scene(root: Path, name: str, shape: tuple[int, ...] = (3, 70, 50), ending: str = "tif") -> None:
    write_raster(root / f"scenes/{name}.{ending}", pixels(*shape), nodata=0 if ending == "tif" else None)
    mask = np.zeros(shape[1:], np.uint8)
    mask[5:60, 10:30] = 255
    write_raster(root / f"masks/{name}.{ending}", mask)


def prepare(raw: Path, out: Path, *options: str) -> Dataset:
    arguments = ["prepare", str(raw), str(out), "--layout=scenes", "--workers=1", "--tile=32", "--overlap=8", *options]
    cli(arguments, standalone_mode=False)
    return open_dataset(out)


def whole(dataset: Dataset, array: np.ndarray, scene: int) -> np.ndarray:
    """Put the tiles of a scene together; the last one wins, which must not matter."""
    about = dataset.scenes[scene]
    out = np.zeros((*array.shape[1:-2], about.height, about.width), array.dtype)
    for row, place in enumerate(dataset.placements):
        if place.scene == scene:
            part = (..., slice(place.row, place.row + place.height), slice(place.column, place.column + place.width))
            out[part] = array[row][..., : place.height, : place.width]
    return out


@pytest.mark.parametrize("ending", ["tif", "png"])
def test_tiles_make_up_their_scene(tmp_path: Path, ending: str) -> None:
    write_scene(tmp_path / "raw", "a", ending=ending)
    write_scene(tmp_path / "raw", "b", (3, 20, 31), ending=ending)
    dataset = prepare(tmp_path / "raw", tmp_path / "d.h5")
    assert dataset.record_ids[:3] == ("a_r00000_c00000", "a_r00000_c00018", "a_r00024_c00000")
    assert dataset.placements[5] == Placement(0, 38, 18, 32, 32)
    assert dataset.groups == ("a",) * 6 + ("b",)
    for scene, name in enumerate("ab"):
        about = describe(tmp_path / f"raw/scenes/{name}.{ending}")
        window = (0, 0, about.height, about.width)
        assert np.array_equal(whole(dataset, dataset.bands, scene)[0], read(about.path, window)[0])
        assert (dataset.scenes[scene].crs, dataset.scenes[scene].transform) == (about.crs, about.transform)
        assert bool(about.crs) == (ending == "tif")
        mask, _ = read(tmp_path / f"raw/masks/{name}.{ending}", window)
        assert np.array_equal(whole(dataset, dataset.votes, scene), mask[0] > 0)
    assert (dataset.votes[-1, 20:] == IGNORE).all()
    assert (dataset.votes[-1, :, 31:] == IGNORE).all()


def test_what_the_masks_show_can_be_named(tmp_path: Path) -> None:
    write_scene(tmp_path / "raw", "a")
    dataset = prepare(tmp_path / "raw", tmp_path / "d.h5", "--target-name=cell membrane")
    assert target_of(dataset) == SceneOptions.parse(dataset.options).target_name == "cell membrane"


def test_arrays_with_their_bands_in_front_are_told_in_few_words(tmp_path: Path) -> None:
    (tmp_path / "raw/scenes").mkdir(parents=True)
    path = tmp_path / "raw/scenes/a.npy"
    for shape in ((4, 128, 128), (20, 128, 128)):
        np.save(path, pixels(*shape))
        with pytest.raises(DataError, match=rf"{re.escape(str(shape))}, where the bands seem to come first; save np"):
            prepare(tmp_path / "raw", tmp_path / "d.h5", "--split=test", "--bands=red,green,blue,nir")
    np.save(path, pixels(20, 100, 128))
    with pytest.raises(DataError) as caught:
        prepare(tmp_path / "raw", tmp_path / "d.h5", "--split=test", "--bands=red,green,blue,nir")
    assert str(caught.value).split("\n")[0] == (
        f"{path}: expected 4 bands (red, green, blue, nir), found 128 (b01, b02, b03 and 125 more); name all bands "
        "with --bands, or remove the others from the file; the bands of an array come last, and this one has 20 rows "
        "and 128 bands: if they come first, save np.moveaxis(array, 0, -1)"
    )


def test_the_share_of_padding_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scene(tmp_path / "raw", "a", (3, 64, 64))
    prepare(tmp_path / "raw", tmp_path / "d.h5")
    said = "55.6% of the other pixels are repeated in overlaps (--overlap 0 makes 4 tiles, not 9)"
    assert f"padding: 0.0% of the pixels; {said}" in capsys.readouterr().out
    write_scene(tmp_path / "raw", "b", (3, 16, 32))
    prepare(tmp_path / "raw", tmp_path / "e.h5", "--overlap=0")
    assert "padding: 10.0% of the pixels\n" in capsys.readouterr().out


@pytest.mark.parametrize(("tile", "overlap"), [(64, 16), (80, 64)])
def test_the_usual_overlap_fits_small_tiles(tmp_path: Path, tile: int, overlap: int) -> None:
    write_scene(tmp_path, "a", (1, 90, 64))
    arguments = ["--layout=scenes", "--workers=1", f"--tile={tile}"]
    cli(["prepare", str(tmp_path), str(tmp_path / "d.h5"), *arguments], standalone_mode=False)
    assert f"--overlap={overlap} " in open_dataset(tmp_path / "d.h5").options


def test_nodata_and_ignored_values_do_not_count(tmp_path: Path) -> None:
    bands, mask = pixels(2, 32, 32), np.zeros((32, 32), np.uint8)
    bands[:, :4], mask[10:20], mask[20:] = 7, 128, 3
    write_raster(tmp_path / "scenes/a.tif", bands, nodata=7)
    write_raster(tmp_path / "masks/a.tif", mask)
    dataset = prepare(tmp_path, tmp_path / "d.h5", "--mask-values=0=0,128=1,3=ignore", "--bands=red,nir")
    assert dataset.votes[0, :, 0].tolist() == [IGNORE] * 4 + [0] * 6 + [1] * 10 + [IGNORE] * 12
    assert not dataset.bands[0, 0, :, :4].any()
    assert dataset.band_names == ("red", "nir")


def test_an_alpha_channel_is_said_and_what_is_transparent_does_not_count(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bands = RNG.integers(1, 255, (4, 32, 32)).astype(np.uint8)
    bands[3, :4], bands[3, 4:8] = 0, 128
    path = write_raster(tmp_path / "scenes/a.tif", bands)  # GDAL takes the fourth band for an alpha channel
    write_raster(tmp_path / "masks/a.tif", ZEROS[:32, :32])
    dataset = prepare(tmp_path, tmp_path / "d.h5")
    assert dataset.votes[0, :, 0].tolist() == [IGNORE] * 4 + [0] * 28
    assert dataset.band_names == ("red", "green", "blue")
    (warning,) = caplog.messages
    assert f"1 of 1 files have an alpha channel, such as {path}; it is not packed, and pixels with alpha 0" in warning
    with pytest.raises(DataError, match=r"expected 4 bands \(red, green, blue, nir\), found 3 .* an alpha channel"):
        prepare(tmp_path, tmp_path / "e.h5", "--bands=red,green,blue,nir")
    (command,) = re.findall("`rio (.*)`", warning)
    rio(shlex.split(command), standalone_mode=False)
    dataset = prepare(tmp_path, tmp_path / "e.h5", "--bands=red,green,blue,nir")
    assert np.array_equal(whole(dataset, dataset.bands, 0)[0], bands)


def test_a_file_for_each_band_and_arrays(tmp_path: Path) -> None:
    raw, bands = tmp_path / "raw", pixels(2, 32, 40)
    for name, band in zip(("red", "nir"), bands, strict=True):
        write_raster(raw / f"train_{name}/{name}_patch_7.TIF", band)
    write_raster(raw / "train_gt/gt_patch_7.TIF", (bands[0] > 3000).astype(np.uint8))
    options = ("--scenes=train_{band}/{band}_{scene}.TIF", "--masks=train_gt/gt_{scene}.TIF", "--bands=red,nir")
    dataset = prepare(raw, tmp_path / "d.h5", *options)
    assert dataset.scenes[0].name == "patch_7"
    assert np.array_equal(whole(dataset, dataset.bands, 0)[0], bands)
    (raw / "train_nir/nir_patch_7.TIF").unlink()
    with pytest.raises(DataError, match="the scene patch_7 lacks the bands nir"):
        prepare(raw, tmp_path / "e.h5", *options)
    for folder, array in (("scenes", bands.transpose(1, 2, 0)), ("masks", bands[0] > 3000)):
        (raw / folder).mkdir()
        np.save(raw / folder / "x.npy", array)
    assert np.array_equal(whole(again := prepare(raw, tmp_path / "n.h5"), again.bands, 0)[0], bands)


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    raw = tmp_path / "raw"
    for name in "abcdef":
        write_scene(raw, name, (1, 40, 40))
    for subset, names in {"train": "scene\na.tif\nb\nc.tif\n", "val": "d.tif\n", "test": "e.tif\n"}.items():
        (raw / "filelists").mkdir(exist_ok=True)
        (raw / f"filelists/{subset}.csv").write_text(names)
    return raw


def split(data: Path, out: Path, *options: str) -> dict[str, set[int]]:
    """Return the folds of each scene."""
    cli(["split", str(data), "-o", str(out), *options], standalone_mode=False)
    found: dict[str, set[int]] = {}
    filelist = read_filelist(out)
    for record_id, fold in zip(filelist.record_ids, filelist.folds, strict=True):
        found.setdefault(record_id[0], set()).add(fold)
    assert list(leaks(filelist, dict(zip(filelist.record_ids, filelist.groups, strict=True)))) == []
    return found


def test_given_file_lists_are_kept(listed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (listed / "masks/e.tif").unlink()  # nobody needs the masks of test scenes
    dataset = prepare(listed, tmp_path / "d.h5")
    assert "1 of 6 scenes are not on the lists of scenes and are left out" in caplog.text
    assert {scene.name: scene.subset for scene in dataset.scenes} == {
        "a": "train", "b": "train", "c": "train", "d": "val", "e": "test",
    }  # fmt: skip
    folds = split(tmp_path / "d.h5", tmp_path / "given.csv", "--given")
    assert folds == {"a": {-2}, "b": {-2}, "c": {-2}, "d": {0}, "e": {-1}}
    folds = split(tmp_path / "d.h5", tmp_path / "new.csv", "--folds=4")
    assert folds.pop("e") == {-1}
    assert sorted(map(tuple, folds.values())) == [(0,), (1,), (2,), (3,)]  # no fold splits a scene
    assert prepare(listed, tmp_path / "t.h5", "--split=test").scenes[0].name == "e"


def test_without_file_lists_there_is_nothing_to_keep(tmp_path: Path) -> None:
    write_scene(tmp_path / "raw", "a")
    prepare(tmp_path / "raw", tmp_path / "d.h5")
    with pytest.raises(DataError, match=r"found none on val \(lists: none"):
        split(tmp_path / "d.h5", tmp_path / "x.csv", "--given")


def _write(name: str, array: np.ndarray, **profile: Any) -> Callable[[Path], object]:
    return lambda raw: write_raster(raw / name, array, **profile)


def _truncate(raw: Path) -> None:
    path = raw / "scenes/a.tif"
    path.write_bytes(path.read_bytes()[:2000])


ZEROS = np.zeros((40, 40), np.uint8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: (raw / "masks/a.tif").unlink(), r"found none for 1 of 6: a; add them"),
        (_write("masks/a.tif", ZEROS[:39]), "masks/a.tif: .*, found 39 x 40: .* cropped, resized or rotated"),
        (
            _write("masks/a.tif", ZEROS, transform=from_origin(500_300, 5_000_000, 30, 30)),
            "masks/a.tif: expected the location of .*gdalwarp",
        ),
        (_write("masks/a.tif", ZEROS, transform=rasterio.Affine(0, 30, 5e5, -30, 0, 5e6)), "expected the location of"),
        (
            _write("masks/a.tif", ZEROS, crs="EPSG:32634"),
            r"expected the coordinate system .* \(EPSG:32633\), found others \(EPSG:32634\)",
        ),
        (
            _write("masks/a.tif", ZEROS + np.uint8(2)),
            r"masks/a.tif: expected the values 0, 1, 255, found 2 \(uint8\); give its",
        ),
        (
            _write("masks/a.tif", np.tile(np.array([0, 1, 255, 0], np.uint8), (40, 10))),
            "expected 0 and 1, or 0 and 255, found 0, 1 and 255",
        ),
        (
            _write("masks/a.tif", np.stack([ZEROS, ZEROS])),
            "masks/a.tif: expected one band, or three equal ones, found 2",
        ),
        (
            _write("scenes/a.tif", pixels(2, 40, 40)),
            r"expected the bands grey as in most .*, found the bands b01, b02 \(1 such",
        ),
        (
            _write("scenes/a.tif", ZEROS + np.uint8(1)),
            r"expected 16 bits of uint16 .*, found 8 bits of uint8.* --range 0,1",
        ),
        (_write("scenes/a.png", pixels(40, 40)), r"expected one file of the scene a, found two: \S+a.png and \S+a.tif"),
        (lambda raw: (raw / "filelists/val.csv").write_text("d\nz\n"), "existing scenes, found 1 others: z"),
        (lambda raw: (raw / "filelists/val.csv").write_text("a\nd\n"), "found a in train.csv too"),
        (_truncate, "scenes/a.tif: .* damaged, truncated"),
    ],
)
def test_what_does_not_fit_is_refused(
    listed: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    if "found none for" in message:
        (listed / "filelists/test.csv").write_text("f\n")
        (listed / "filelists/train.csv").write_text("a\nb\nc\ne\n")
    damage(listed)
    with pytest.raises(DataError, match=message):
        prepare(listed, tmp_path / "d.h5")
    assert not (tmp_path / "d.h5").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--frames=4"], "expected options of --layout scenes (--bands, --tile"),
        (["--mask-values=0=2"], "expected each value once with 0, 1 or ignore"),
        (["--mask-values=0=0,0=1"], "expected each value once"),
    ],
)
def test_wrong_usage(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli(["prepare", "raw", "d.h5", "--layout=scenes", *options])
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("pattern", ["scenes/x", "{band}/{scene}"])
def test_a_pattern_names_scene_and_bands(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(DataError, match=r"expected \{scene\} in place of the scene's name"):
        prepare(tmp_path, tmp_path / "d.h5", f"--scenes={pattern}")
    with pytest.raises(DataError, match=r"expected scenes as scenes/\{scene\} in .* found nothing; give the folder"):
        prepare(tmp_path, tmp_path / "d.h5")


@pytest.mark.parametrize(("scene", "mask"), [("a.tif", "a.png"), ("a.png", "a.tif")])
def test_a_file_that_says_no_place_fits_one_that_does(tmp_path: Path, scene: str, mask: str) -> None:
    write_raster(tmp_path / "scenes" / scene, np.full((40, 40), 9, np.uint8))
    write_raster(tmp_path / "masks" / mask, ZEROS)
    assert len(prepare(tmp_path, tmp_path / "d.h5").scenes) == 1


def test_a_turned_scene_keeps_its_map(tmp_path: Path) -> None:
    turned = rasterio.Affine(21.0, 21.0, 5e5, 21.0, -21.0, 5e6)
    write_raster(tmp_path / "scenes/a.tif", pixels(40, 40), transform=turned, crs=UTM)
    write_raster(tmp_path / "masks/a.tif", ZEROS, transform=turned, crs=UTM)
    assert prepare(tmp_path, tmp_path / "d.h5").scenes[0].transform == tuple(turned)[:6]


def test_scenes_of_a_split_that_have_labels_or_are_those_of_another_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw, labelled = tmp_path / "raw", "scenes of the split test have masks, and are packed with these labels"
    for name in "ab":
        write_scene(raw, name)
    (raw / "masks/b.tif").unlink()
    prepare(raw, tmp_path / "one.h5", "--split=test")
    assert f"1 of 2 {labelled}" in caplog.text
    assert "--split test: there are no file lists, so all 2 scenes are packed, as --split train packs" in caplog.text
    caplog.clear()
    (raw / "filelists").mkdir()
    (raw / "filelists/train.csv").write_text("a\n")
    prepare(raw, tmp_path / "two.h5", "--split=validation")
    assert "--split validation: the file lists name none, so all 1 scenes are packed, as --split train" in caplog.text
    assert labelled not in caplog.text
    caplog.clear()
    (raw / "filelists/test.csv").write_text("b\n")
    prepare(raw, tmp_path / "three.h5", "--split=test")
    prepare(raw, tmp_path / "four.h5")
    assert "split" not in caplog.text
