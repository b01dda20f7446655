"""Tables of encodings as contests write them: ids with endings and classes, which come back in the submission."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_files import write_raster

from contrails.aggregate.output.submission import check_submission, write_submission
from contrails.cli.main import cli
from contrails.dataset.rle import Convention
from contrails.dataset.rle_tables import match_ids
from contrails.dataset.store import Dataset, open_dataset
from contrails.errors import DataError

IMAGE = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32).astype(np.uint8)
FISH = """Image_Label,EncodedPixels
x.jpg_Fish,1 2
x.jpg_Sugar_cane,1 8
y.jpg_Fish,
y.jpg_Sugar_cane,5 1
"""
STEEL = """ImageId,ClassId,EncodedPixels
x.jpg,1,1 2
x.jpg,3,9 4
y.jpg,3,5 1
"""
COLUMNS = {FISH: "Image_Label,EncodedPixels", STEEL: "ImageId,EncodedPixels"}


def prepare(root: Path, table: str, *options: str, split: str = "train") -> Dataset:
    for name in ("x", "y", "z"):
        write_raster(root / split / f"{name}.png", IMAGE)
    if table:
        (root / f"{split}.csv").write_text(table)
        options = (f"--rle-columns={COLUMNS.get(table, 'record_id,encoded_pixels')}", *options)
    arguments = ["prepare", str(root), str(root / f"{split}.h5"), "--layout=images-rle", f"--split={split}"]
    cli([*arguments, "--workers=1", *options], standalone_mode=False)
    return open_dataset(root / f"{split}.h5")


def masks(dataset: Dataset) -> dict[str, int]:
    return dict(zip(dataset.record_ids, (dataset.votes == 1).sum(axis=(1, 2)).tolist(), strict=True))


def submit(dataset: Dataset, path: Path, sample: Path | None = None) -> str:
    found = [(name, np.zeros((32, 32), bool)) for name in dataset.record_ids]
    found[0][1][:3, 0] = True
    write_submission(path, found, sample, dataset.convention)
    assert check_submission(path, dataset.whole_shapes, sample, dataset.convention).positive_pixels == 3
    return path.read_text()


def test_an_ending_is_accepted_and_given_back(tmp_path: Path) -> None:
    dataset = prepare(tmp_path, "record_id,encoded_pixels\nx.jpg,1 2\ny.jpg,-\n")
    assert dataset.record_ids == ("x", "y", "z")
    assert masks(dataset) == {"x": 2, "y": 0, "z": 0}
    assert dataset.annotators.tolist() == [1, 1, 0]
    assert submit(dataset, tmp_path / "s.csv") == "record_id,encoded_pixels\nx.jpg,1 3\ny.jpg,-\nz.jpg,-\n"


def test_a_class_behind_the_ids_is_chosen_and_given_back(tmp_path: Path) -> None:
    dataset = prepare(tmp_path, FISH, "--rle-class=Fish", "--rle-empty=")
    assert masks(dataset) == {"x": 2, "y": 0, "z": 0}
    assert dataset.annotators.tolist() == [1, 1, 0]
    assert submit(dataset, tmp_path / "s.csv").splitlines()[1:] == ["x.jpg_Fish,1 3", "y.jpg_Fish,", "z.jpg_Fish,"]
    rows = [f"{name}.jpg_{label},1 1" for name in ("z", "y", "x") for label in ("Fish", "Sugar_cane")]
    (tmp_path / "sample.csv").write_text("Image_Label,EncodedPixels\n" + "\n".join(rows) + "\n")
    written = submit(dataset, tmp_path / "t.csv", tmp_path / "sample.csv").splitlines()[1:]
    assert written == ["z.jpg_Fish,", "y.jpg_Fish,", "x.jpg_Fish,1 3"]


def test_a_class_of_several_words(tmp_path: Path) -> None:
    assert masks(prepare(tmp_path, FISH, "--rle-class=Sugar_cane")) == {"x": 8, "y": 1, "z": 0}


def test_a_class_in_a_column_is_chosen_and_given_back(tmp_path: Path) -> None:
    dataset = prepare(tmp_path, STEEL, "--rle-class=ClassId=1")
    assert masks(dataset) == {"x": 2, "y": 0, "z": 0}
    assert dataset.annotators.tolist() == [1, 1, 0]  # of y the table knows another class alone
    said = submit(dataset, tmp_path / "s.csv")
    assert said == "ImageId,EncodedPixels,ClassId\nx.jpg,1 3,1\ny.jpg,-,1\nz.jpg,-,1\n"
    sample = tmp_path / "sample.csv"
    sample.write_text("ImageId,ClassId,EncodedPixels\n" + "".join(f"{id_}.jpg,{k},\n" for id_ in "xyz" for k in (1, 3)))
    said = submit(dataset, tmp_path / "t.csv", sample)
    assert said == "ImageId,ClassId,EncodedPixels\nx.jpg,1,1 3\ny.jpg,1,-\nz.jpg,1,-\n"


def test_classes_of_a_column_that_nobody_chose_are_taken_together_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert masks(prepare(tmp_path, STEEL)) == {"x": 6, "y": 1, "z": 0}
    assert "has a column ClassId (1, 3): the masks of all classes are merged; to choose one" in caplog.text


def test_ids_of_test_images_are_written_as_in_the_sample(tmp_path: Path) -> None:
    (tmp_path / "sample_submission.csv").write_text("Id,Mask\nx.tif_a,\ny.tif_a,\nz.tif_a,\nx.tif_b,\n")
    dataset = prepare(tmp_path, "", "--rle-class=a", "--rle-columns=Id,Mask", split="test")
    assert (dataset.convention.ending, dataset.convention.label) == (".tif", "a")
    assert submit(dataset, tmp_path / "s.csv") == "Id,Mask\nx.tif_a,1 3\ny.tif_a,-\nz.tif_a,-\n"


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (FISH, [], r"such as x.jpg_Fish \(Fish, Sugar_cane\); choose a class .*, such as --rle-class Fish"),
        (FISH, ["--rle-class=Fisch"], "the class Fisch behind the ids, found Fish, Sugar_cane; did you mean 'Fish'"),
        (
            STEEL,
            ["--rle-class=1"],
            "found no class; if one of the columns .*ImageId, ClassId, Enc.* --rle-class COLUMN=1",
        ),
        (STEEL, ["--rle-class=ClassId=2"], "expected the class 2 in the column ClassId, found 1, 3"),
        (STEEL, ["--rle-class=Class=1"], r"\(no Class\); name them with --rle-class"),
        ("record_id,encoded_pixels\nx.jpg,-\ny,-\n", [], "expected ids with one ending, found x.jpg and y; write all"),
        ("record_id,encoded_pixels\nx.jpg,-\ny.gz.txt,-\n", [], "existing images, found 1 others: y.gz.txt"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, table: str, options: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, table, *options)
    assert not (tmp_path / "train.h5").exists()


def test_the_command_that_makes_a_missing_shard_says_all_options(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found none"):  # there is no whole file yet
        prepare(tmp_path, FISH, "--rle-class=Fish", "--rle-empty=", "--shard=1/2")
    with pytest.raises(DataError) as caught:
        cli(["data", "join", str(tmp_path / "train.h5")], standalone_mode=False)
    (command,) = re.findall("`contrails (.*)`", str(caught.value))
    cli([str(tmp_path) if word == "RAW" else word for word in shlex.split(command)], standalone_mode=False)
    cli(["data", "join", str(tmp_path / "train.h5")], standalone_mode=False)
    assert masks(open_dataset(tmp_path / "train.h5")) == {"x": 2, "y": 0, "z": 0}


NAMES = st.text("ab_.1", min_size=1, max_size=5)
ENDINGS, LABELS = st.sampled_from(["", ".jpg", ".b"]), st.sampled_from(["", "a", "a_b", "1"])


@given(st.sets(NAMES, min_size=1, max_size=4), ENDINGS, LABELS)
def test_ids_come_back_whatever_they_are(known: set[str], ending: str, label: str) -> None:
    convention = Convention(ending=ending, label=label)
    names = sorted(known)
    try:
        matches = match_ids(Path("t.csv"), [convention.written(name) for name in names], known, convention)
    except DataError:
        return  # of ids that can be read in two ways
    if not any(other != name and other.startswith(name) for name in names for other in names):
        assert [match.record_id for match in matches] == names
        assert {match.label for match in matches} == {label}
