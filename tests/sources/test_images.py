"""The layout images-rle: pixels as they are, masks as the table says, and tables and folders that do not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import write_dicom, write_raster
from PIL import Image

from contrails.cli.main import cli
from contrails.dataset.join import join
from contrails.dataset.layout import target_of
from contrails.dataset.pack import pack
from contrails.dataset.rle import Convention, encode
from contrails.dataset.store import IGNORE, Dataset, open_dataset
from contrails.dataset.verify import damaged_rows
from contrails.errors import DataError
from contrails.sources.images import make_plan

SIIM = Convention("relative", "columns", "-1", ("ImageId", "EncodedPixels"))
RNG = np.random.default_rng(1)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(0, 255, shape).astype(np.uint8)


def prepare(raw: Path, out: Path, *options: str) -> Dataset:
    cli(["prepare", str(raw), str(out), "--layout=images-rle", "--workers=1", *options], standalone_mode=False)
    return open_dataset(out)


def test_radiographs_and_a_table_of_relative_starts(tmp_path: Path) -> None:
    images = {f"1.2.{number}": pixels(40, 50) for number in range(4)}
    for name, image in images.items():
        write_dicom(tmp_path / "raw/train/study" / name / f"{name}.dcm", image, PatientID=f"p{name[-1] in '01'}")
    left, right = np.zeros((2, 40, 50), bool)
    left[3:9, 4:6], right[20:30, 40:50] = True, True
    rows = [f"1.2.0, {encode(left, SIIM)}", "1.2.1, -1", f"1.2.0,{encode(right, SIIM)}", "1.2.2,"]
    # as the contest's file: spaces in the header, several rows an image, and a byte-order mark as spreadsheets leave it
    (tmp_path / "raw/train.csv").write_text("\ufeffImageId, EncodedPixels\n" + "\n".join(rows) + "\n")
    options = ("--rle-starts=relative", "--rle-empty=-1", "--rle-columns=ImageId,EncodedPixels")
    dataset = prepare(tmp_path / "raw", tmp_path / "d.h5", *options)
    assert dataset.record_ids == tuple(images)
    assert dataset.bands.dtype == np.uint8
    assert np.array_equal(dataset.bands[:, 0, 0], np.stack(list(images.values())))
    assert np.array_equal(dataset.votes[0], left | right)
    assert not dataset.votes[1:].any()
    assert dataset.annotators.tolist() == [1, 1, 1, 0]  # the last one is not in the table
    assert dataset.groups == ("pTrue", "pTrue", "pFalse", "pFalse")
    assert dataset.convention == SIIM
    assert dataset.scenes[0].transform == (0.1, 0.0, 0.0, 0.0, 0.2, 0.0)
    assert list(damaged_rows(dataset)) == []


def test_what_the_masks_show_can_be_named(tmp_path: Path) -> None:
    write_images(tmp_path / "raw", {"a": (20, 20)})
    dataset = prepare(tmp_path / "raw", tmp_path / "d.h5", "--target-name=cell membrane", "--group-by=(.)")
    assert target_of(dataset) == "cell membrane"
    assert prepare(tmp_path / "raw", tmp_path / "e.h5").fingerprint == dataset.fingerprint


def write_images(raw: Path, shapes: dict[str, tuple[int, ...]], ending: str = "png", split: str = "train") -> None:
    for name, shape in shapes.items():
        write_raster(raw / split / f"{name}.{ending}", pixels(*shape))
    (raw / f"{split}.csv").write_text("record_id,encoded_pixels\n" + "".join(f"{name},1 2\n" for name in shapes))


def test_images_of_several_sizes_are_padded_with_ignore(tmp_path: Path) -> None:
    write_images(tmp_path / "raw", {"a": (3, 32, 48), "b": (3, 40, 33)})
    dataset = prepare(tmp_path / "raw", tmp_path / "d.h5", "--rle-order=rows")
    assert (dataset.bands.shape, dataset.band_names) == ((2, 1, 3, 40, 48), ("red", "green", "blue"))
    assert (dataset.votes[0, 32:] == IGNORE).all()
    assert (dataset.votes[1, :, 33:] == IGNORE).all()
    assert [int((dataset.votes[row] == IGNORE).sum()) for row in (0, 1)] == [8 * 48, 40 * 15]
    assert dataset.votes[0, 0, :3].tolist() == [1, 1, 0]
    assert np.array_equal(dataset.bands[1, 0, :, :, 33:], dataset.bands[1, 0, :, :, 32:17:-1])  # mirrored


def test_shards_are_joined_to_the_same_bytes(tmp_path: Path) -> None:
    write_images(tmp_path / "raw", {"a": (32, 48), "b": (40, 33), "c": (20, 20)})
    plan = make_plan(tmp_path / "raw", "train", Convention())
    assert pack(plan, tmp_path / "whole.h5", 1)
    for index in (1, 2):
        pack(plan.shard(index, 2), tmp_path / f"joined-{index}of2.h5", 1)
    join(tmp_path / "joined.h5")
    assert (tmp_path / "joined.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert not pack(plan, tmp_path / "whole.h5", 1)
    with pytest.raises(DataError, match=r"exists and differs in convention"):
        pack(make_plan(tmp_path / "raw", "train", Convention("relative")), tmp_path / "whole.h5", 1)


def test_files_of_the_first_builds_are_the_same(tmp_path: Path) -> None:
    for number, name in enumerate("ab"):
        (tmp_path / "raw/train").mkdir(parents=True, exist_ok=True)
        image = np.arange(32 * 40).reshape(32, 40).astype(np.uint8) + np.uint8(number)
        Image.fromarray(image).save(tmp_path / f"raw/train/{name}.png")
    (tmp_path / "raw/train.csv").write_text("record_id,encoded_pixels\na,1 20\nb,-\n")
    plan = make_plan(tmp_path / "raw", "train", Convention())
    assert plan.header.digest == "4af6f19c03e564f1bad7c219f44e21460c7f7344677d81693b0840630a245f24"
    pack(plan, tmp_path / "d.h5", 1)
    found = open_dataset(tmp_path / "d.h5").fingerprint
    assert found == "613832407e55d66b1aef22b29f2a70e105f4c54510f14a3e7c3919b2d4d56cdb"


def test_a_test_split_needs_no_table(tmp_path: Path) -> None:
    write_images(tmp_path / "raw", {"a": (32, 48)}, split="test")
    (tmp_path / "raw/test.csv").unlink()
    assert prepare(tmp_path / "raw", tmp_path / "d.h5", "--split=test").annotators.tolist() == [0]
    (tmp_path / "raw/test").rename(tmp_path / "raw/train")
    with pytest.raises(DataError, match=r"expected a table of masks at .*train.csv, found no such file"):
        make_plan(tmp_path / "raw", "train", Convention())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("record_id,encoded_pixels\na,1 2\nz,-\n", "existing images, found 1 others: z; add"),
        ("record_id,encoded_pixels\na,-\na,1 2\n", "expected an empty mask or masks with pixels for a, found both"),
        ("record_id,rle\na,1 2\n", r"expected the columns record_id,encoded_pixels, found record_id,rle \(no encoded"),
        ("", "expected the columns record_id,encoded_pixels, found nothing"),
        ("record_id,encoded_pixels\na,1 2,3\n", "line 2: expected record_id,encoded_pixels, found 3 fields"),
        ("record_id,encoded_pixels\na,1024 2\n", r"mask of a: run 1 \(start 1024, length 2\) leaves .* 1024 pixels"),
        ("record_id,encoded_pixels\na,1 x\n", "the mask of a: expected whole numbers .*, found 'x'.*--rle-starts"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path: Path, table: str, message: str) -> None:
    write_images(tmp_path, {"a": (32, 32)})
    (tmp_path / "train.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        pack(make_plan(tmp_path, "train", Convention()), tmp_path / "d.h5", 1)
    assert not (tmp_path / "d.h5").exists()


def _an_id_twice(raw: Path) -> None:
    write_raster(raw / "train/more/a.tif", pixels(32, 32))


def _colours(raw: Path) -> None:
    write_raster(raw / "train/b.png", pixels(3, 32, 32))


def _palette(raw: Path) -> None:
    Image.fromarray(pixels(32, 32)).convert("P", palette=Image.Palette.ADAPTIVE).quantize(5).save(raw / "train/a.png")


def _nothing(raw: Path) -> None:
    (raw / "train/a.png").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_an_id_twice, r"one image per id, found two of a: \S+/a.png and \S+/more/a.tif"),
        (_colours, r"expected the bands \w.* as in most of the images, found the bands \w.* \(1 such files\)"),
        (_palette, r"a.png: .* colour numbers of a palette; convert it: `gdal_translate -expand rgb \S+/a.png OUT`"),
        (_nothing, "expected image files in .*train"),
    ],
)
def test_folders_that_do_not_fit_are_refused(tmp_path: Path, damage: Any, message: str) -> None:
    write_images(tmp_path, {"a": (32, 32)})
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        make_plan(tmp_path, "train", Convention())


def test_images_to_predict_that_have_labels_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path / "raw", {"a": (20, 20), "b": (20, 20)}, split="test")
    prepare(tmp_path / "raw", tmp_path / "d.h5", "--split=test")
    assert "2 of 2 records of the split test have masks, and are packed with these labels" in caplog.text
    caplog.clear()
    (tmp_path / "raw/test.csv").unlink()
    prepare(tmp_path / "raw", tmp_path / "e.h5", "--split=test")
    assert caplog.text == ""
