"""Groups that a user says: what belongs together is never dealt to several folds."""

from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
from image_files import write_dicom, write_raster

from contrails.aggregate.scores.evaluate import seen_in_training
from contrails.cli.main import cli
from contrails.dataset.store import Dataset, open_dataset
from contrails.errors import DataError
from contrails.folds.filelists import HELD_OUT, read_filelist

IMAGE = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32).astype(np.uint8)
STACKS = {"s1_01": "s1", "s1_02": "s1", "s2_01": "s2", "s2_02": "s2", "s3_01": "s3", "s3_02": "s3"}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in STACKS:
        write_raster(tmp_path / "train" / name[:2] / f"{name}.png", IMAGE)
    rows = "".join(f"{name}.png,1 2\n" for name in STACKS)
    (tmp_path / "train.csv").write_text(f"record_id,encoded_pixels\n{rows}")
    return tmp_path


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    for name in STACKS:
        write_raster(tmp_path / f"scenes/{name}.tif", np.concatenate([IMAGE, IMAGE]))
        write_raster(tmp_path / f"masks/{name}.tif", np.concatenate([IMAGE, IMAGE]) % np.uint8(2))
    return tmp_path


def prepare(raw: Path, layout: str, *options: str) -> Dataset:
    more = ("--tile=32", "--overlap=0") if layout == "scenes" else ()
    arguments = ["prepare", str(raw), str(raw / "d.h5"), f"--layout={layout}", "--workers=1", *more, *options]
    cli(arguments, standalone_mode=False)
    return open_dataset(raw / "d.h5")


def write_table(raw: Path) -> str:
    rows = "".join(f"{name}.tif,{number},{group}\n" for number, (name, group) in enumerate(STACKS.items()))
    (raw / "groups.csv").write_text(f"name,age,group\n{rows}elsewhere.tif,4,s9\n")
    return f"--groups={raw / 'groups.csv'}"


def test_images_are_grouped_by_their_path(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = prepare(images, "images-rle", "--group-by=^([^/]+)/")
    assert dict(zip(dataset.record_ids, dataset.groups, strict=True)) == STACKS
    assert "groups: 3 of 6" in capsys.readouterr().out
    assert "--group-by=" in dataset.options


@pytest.mark.parametrize("by_table", [False, True])
def test_no_fold_splits_a_group_of_scenes(scenes: Path, by_table: bool) -> None:
    dataset = prepare(scenes, "scenes", write_table(scenes) if by_table else "--group-by=s[0-9]")
    assert {dataset.whole(row): dataset.groups[row] for row in range(dataset.num_records)} == STACKS
    cli(["split", str(scenes / "d.h5"), "--folds=3", "-o", str(scenes / "f.csv")], standalone_mode=False)
    filelist = read_filelist(scenes / "f.csv")
    pairs = {(name[:2], fold) for name, fold in zip(filelist.record_ids, filelist.folds, strict=True)}
    assert len(pairs) == 3
    # a scene that was trained on is known by its name, whatever its group is called
    held_out = replace(filelist, folds=tuple(HELD_OUT if name[:2] == "s3" else 0 for name in filelist.record_ids))
    assert {dataset.whole(row)[:2] for row in seen_in_training(dataset, held_out)} == {"s1", "s2"}


def test_without_groups_each_image_is_one_of_its_own_and_that_is_said(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(images, "images-rle").groups == tuple(STACKS)
    assert "groups: each of 6 is a group of its own; if some belong together" in capsys.readouterr().out


def test_patients_of_dicom_files_are_groups(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "c"):
        write_dicom(tmp_path / f"train/{name}.dcm", IMAGE, PatientID="p" if name < "c" else "q")
    (tmp_path / "train.csv").write_text("record_id,encoded_pixels\na,1 2\n")
    assert prepare(tmp_path, "images-rle").groups == ("p", "p", "q")
    assert "groups: 2 of 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,patient\ns1_01,a\n", "expected a header such as name,group, found name,patient; name the column"),
        ("group\na\n", "expected a header such as name,group, found group"),
        ("name,group\ns1_01\n", "line 2: expected name,group, found 's1_01'"),
        ("name,group\ns1_01,\n", "line 2: expected name,group, found 's1_01,'"),
        ("name,group\ns1_01,a\ns1_01.png,b\n", "line 3: expected one group for s1_01, found a and b; keep one"),
        (
            "group,name\na,s1_01\n",
            "expected a group for every name, found none for 5 of 6, such as s1_02, s2_01, s2_02; add them",
        ),
    ],
)
def test_tables_that_do_not_fit_are_refused(images: Path, table: str, message: str) -> None:
    (images / "groups.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        prepare(images, "images-rle", f"--groups={images / 'groups.csv'}")


def test_expressions_that_do_not_fit_are_refused(images: Path) -> None:
    with pytest.raises(
        DataError, match=r"--group-by 's\[12\]': expected a group in all 6 names, found none in 2, such as s3/s3_01"
    ):
        prepare(images, "images-rle", "--group-by=s[12]")
    with pytest.raises(click.BadParameter, match="'s\\(': expected a regular expression: missing"):
        prepare(images, "images-rle", "--group-by=s(")
    with pytest.raises(click.UsageError, match="give --group-by or --groups, not both"):
        prepare(images, "images-rle", "--group-by=s", "--groups=g.csv")
