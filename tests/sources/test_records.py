"""Raw records: what is read, and every way in which they can be wrong."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from contrails.errors import DataError, StorageError
from contrails.sources.goes import make_plan
from contrails.sources.records import find_records, read_bands, read_label

from raw_records import write_metadata, write_record


def test_bands_come_as_frames_by_bands(tmp_path: Path) -> None:
    folder = write_record(tmp_path, "train", "7")
    (record,) = find_records(tmp_path, "train")
    kelvin = read_bands(record, (15, 11), (4, 0))
    assert kelvin.shape == (2, 2, 32, 32)
    raw = np.load(folder / "band_11.npy")
    assert np.array_equal(kelvin[:, 1], raw.transpose(2, 0, 1)[[4, 0]])


def test_individual_masks_are_votes_and_marks(tmp_path: Path) -> None:
    folder = write_record(tmp_path, "train", "7", annotators=5)
    label = read_label(find_records(tmp_path, "train")[0], (32, 32))
    assert label is not None
    individual = np.load(folder / "human_individual_masks.npy")[:, :, 0]
    assert label.annotators == 5
    assert np.array_equal(label.votes, individual.sum(axis=2))
    assert np.array_equal(label.marks >> 3 & 1, individual[:, :, 3])


def test_a_pixel_mask_alone_is_one_annotator(tmp_path: Path) -> None:
    write_record(tmp_path, "validation", "7", annotators=0)
    label = read_label(find_records(tmp_path, "validation")[0], (32, 32))
    assert label is not None
    assert label.annotators == 1
    assert label.votes.max() == 1


def test_no_mask_is_none(tmp_path: Path) -> None:
    write_record(tmp_path, "test", "7", annotators=0, pixel_mask=False)
    assert read_label(find_records(tmp_path, "test")[0], (32, 32)) is None


def test_metadata_give_tile_and_time(tmp_path: Path) -> None:
    for record_id in "123":
        write_record(tmp_path, "train", record_id)
    tiles = {"1": "here", "2": "there", "3": "here"}
    entries = [{"record_id": key, "tile": tile, "timestamp": 100.0 + int(key)} for key, tile in tiles.items()]
    write_metadata(tmp_path, "train", entries)
    one, two, three = find_records(tmp_path, "train")
    assert one.group == three.group != two.group
    assert [one.timestamp, two.timestamp] == [101.0, 102.0]


def test_without_metadata_each_record_is_its_own_group(tmp_path: Path) -> None:
    for record_id in "12":
        write_record(tmp_path, "train", record_id)
    assert [record.group for record in find_records(tmp_path, "train")] == ["1", "2"]


def _nan(path: Path) -> None:
    array = np.load(path)
    array[3, 3, 4] = np.nan
    np.save(path, array)


def _archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, np.zeros((32, 32, 8), np.float32))


DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.unlink(), r"expected \S+band_14.npy, found only the bands 11, 15 of record 7"),
    (lambda path: path.write_bytes(path.read_bytes()[:-100]), r"band_14.npy: expected a .npy file"),
    (lambda path: path.write_bytes(b""), r"band_14.npy: expected a .npy file"),
    (lambda path: np.save(path, np.zeros((32, 32), np.float32)), r"expected float32 \(height, width, frames\)"),
    (lambda path: np.save(path, np.zeros((32, 32, 8))), r"found float64 \(32, 32, 8\)"),
    (lambda path: np.save(path, np.zeros((32, 32, 3), np.float32)), r"expected frame 4, found 3 frames"),
    (_nan, r"expected finite kelvin, found 1 NaN"),
    (_archive, r"band_14.npy: expected one array, as numpy.save writes it, found an archive"),
    (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(30)), r"numpy.save writes it, found an archive"),
    (lambda path: path.write_bytes(path.read_bytes().replace(b"(32,", b"(((,")), r"band_14.npy: expected a .npy"),
    (
        lambda path: path.write_bytes(path.read_bytes().replace(b"(32,", b"(9" + b"9" * 15 + b",")),
        r"expected a .npy file",
    ),
    (lambda path: np.save(path, np.zeros((0, 0, 8), np.float32)), r"expected float32 .*, found float32 \(0, 0, 8\)"),
    (lambda path: np.save(path, np.zeros((16, 32, 8), np.float32)), r"band 11 of \(32, 32\) and band 14 of \(16, 32\)"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_wrong_band_is_named(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(write_record(tmp_path, "train", "7") / "band_14.npy")
    with pytest.raises(DataError, match=message):
        read_bands(find_records(tmp_path, "train")[0], (11, 14, 15), (4,))


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    path = write_record(tmp_path, "train", "7") / "band_14.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"band_14.npy: expected a .npy file"):
        read_bands(find_records(tmp_path, "train")[0], (14,), (4,))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((32, 32, 1, 4), 2), r"expected integers 0 and 1, found int64 with \[2\]"),
        (np.zeros((32, 32, 1, 4), np.float32), "expected integers 0 and 1, found float32"),
        (np.zeros((16, 32, 1, 4), np.int32), r"expected the shape \(32, 32, 1\)"),
        (np.zeros((32, 32, 1, 17), np.int32), r"1 to 16 annotators"),
    ],
)
def test_a_wrong_mask_is_named(tmp_path: Path, mask: np.ndarray, message: str) -> None:
    np.save(write_record(tmp_path, "train", "7") / "human_individual_masks.npy", mask)
    with pytest.raises(DataError, match=message):
        read_label(find_records(tmp_path, "train")[0], (32, 32))


def test_missing_and_empty_folders_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected the records of 'train' in .*found no such folder"):
        find_records(tmp_path, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"expected a folder for each record"):
        find_records(tmp_path, "train")


def _entry(**values: str) -> str:
    """Return metadata of record 7 as JSON; `values` are JSON texts."""
    texts = {
        "record_id": '"7"',
        "projection_wkt": '"here"',
        "row_min": "1.0",
        "col_min": "2",
        "timestamp": "5",
    } | values
    return "[{" + ", ".join(f'"{key}": {text}' for key, text in texts.items()) + "}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected JSON, found another content"),
        ("[{", "expected JSON, found another content"),
        ("[1e\xff]", "expected JSON, found another content"),
        ('{"7": {"timestamp": 1}}', r'expected a list with an object for each record, found {"7":{"timestamp":1}}'),
        ('["6", "7"]', r'expected a list with an object for each record, found "6"'),
        ("null", "expected a list with an object for each record, found null"),
        ("[null]", "expected a list with an object for each record, found null"),
        ("7", "expected a list with an object for each record, found 7"),
        ("[{}]", "expected a record_id in each entry, found {}"),
        ('[{"record_id": null}]', 'expected a record_id in each entry, found {"record_id":null}'),
        ('[{"record_id": ["7"]}]', "expected a record_id in each entry"),
        ('[{"record_id": "7"}]', "record 7: expected a text as projection_wkt, found nothing"),
        (_entry(row_min="null"), "record 7: expected a number as row_min, found None"),
        (_entry(col_min='"x"'), "record 7: expected a number as col_min, found 'x'"),
        (_entry(timestamp='"then"'), "record 7: expected seconds since 1970, .*, as timestamp, found 'then'; get the"),
        (_entry(timestamp="null"), "as timestamp, found 'None'"),
        (_entry(timestamp="[]"), r"as timestamp, found '\[\]'"),
        (_entry(timestamp="1e999"), "as timestamp, found 'inf'"),
        (_entry(timestamp="9" * 400), "as timestamp, found '9{40}'"),
    ],
)
def test_wrong_metadata_are_errors(tmp_path: Path, text: str, message: str) -> None:
    write_record(tmp_path, "train", "7")
    (tmp_path / "train_metadata.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        find_records(tmp_path, "train")


def test_metadata_that_are_a_folder_are_an_error(tmp_path: Path) -> None:
    write_record(tmp_path, "train", "7")
    (tmp_path / "train_metadata.json").mkdir()
    with pytest.raises(StorageError, match=r"cannot read \S+/train_metadata.json: Is a directory"):
        find_records(tmp_path, "train")


@pytest.mark.parametrize(
    ("timestamp", "seconds"),
    [("100", 100.0), ('"1970-01-01T00:01:40"', 100.0), ('"1970-01-01T01:01:40+01:00"', 100.0), ("NaN", math.nan)],
)
def test_a_time_is_seconds_or_a_text_in_utc_or_unknown(tmp_path: Path, timestamp: str, seconds: float) -> None:
    write_record(tmp_path, "train", "7")
    (tmp_path / "train_metadata.json").write_text(f"\ufeff{_entry(timestamp=timestamp)}", encoding="utf-8")
    (record,) = find_records(tmp_path, "train")
    assert record.timestamp == pytest.approx(seconds, nan_ok=True)
    assert record.group != "7"


def test_a_record_without_bands_is_named(tmp_path: Path) -> None:
    folder = write_record(tmp_path, "train", "7", bands=())
    with pytest.raises(DataError, match=rf"expected files band_08.npy to band_16.npy in {folder}, found none"):
        make_plan(tmp_path, "train", None, (4,))


def test_a_record_twice_in_the_metadata_is_an_error(tmp_path: Path) -> None:
    write_record(tmp_path, "train", "7")
    write_metadata(tmp_path, "train", [{"record_id": "7", "tile": "a", "timestamp": 1}] * 2)
    with pytest.raises(DataError, match="expected each record once, found 7 twice"):
        find_records(tmp_path, "train")
