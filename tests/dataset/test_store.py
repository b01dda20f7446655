"""Opening a dataset file: what is not a complete file of this version is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from contrails.dataset.layout import Header, create
from contrails.dataset.store import Placement, Scene, open_dataset
from contrails.errors import DataError
from contrails.sources.goes import KELVIN


def _edit(change: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return apply


def _chunk(file: h5py.File) -> None:
    votes = file["votes"][:]
    attributes = dict(file["votes"].attrs)
    del file["votes"]
    file.create_dataset("votes", data=votes, chunks=(1, 8, 8))
    file["votes"].attrs.update({key: value for key, value in attributes.items() if key.startswith("label")})


def _as_float(file: h5py.File) -> None:
    bands = file["bands"][:].astype(np.float32)
    del file["bands"]
    file["bands"] = bands


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "expected a dataset file at .*, found none"),
        (lambda path: path.write_bytes(b"not HDF5"), "expected a complete HDF5 file"),
        (lambda path: path.write_bytes(path.read_bytes()[:9000]), "expected a complete HDF5 file|is truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4000]), "expected a complete HDF5 file|is truncated"),
        (_edit(lambda file: file.attrs.modify("version", 2)), "version 1, found 'contrails-dataset' version 2"),
        (_edit(lambda file: file.attrs.modify("format", "other")), "found 'other' version 1"),
        (_edit(lambda file: file.pop("group")), "expected the arrays group"),
        (_edit(_chunk), r"/votes .*, found it chunked.*: `contrails data join \S+/d.h5 -o \S+/d-repaired.h5`"),
        (
            _edit(lambda file: file["votes"].attrs.pop("label_frame")),
            "incomplete header .*label_frame.*copy the file again",
        ),
        (
            _edit(lambda file: file["digests"].pop("bands")),
            "expected the digests of bands, found none; repair the file",
        ),
        (_edit(lambda file: file["record_id"].__setitem__(7, "1003")), "each record once, found 1003 in several rows"),
        (_edit(lambda file: file["record_id"].write_direct(np.array([b"\xb5"] * 12, object))), "incomplete header"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"b14", b"b1\xb4")), "incomplete header"),
        (_edit(lambda file: file.attrs.create("band_names", ["b11"])), "differ in their number of records, .*bands"),
        (
            _edit(_as_float),
            r"expected /bands as int16 or uint8 or uint16 with 5 axes, found float32 with 5; prepare it again",
        ),
    ],
)
def test_what_is_refused(tiny_data: Path, tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "d.h5"
    shutil.copy(tiny_data / "train.h5", path)
    damage(path)
    with pytest.raises(DataError, match=message):
        open_dataset(path)


@pytest.mark.parametrize(("places", "is_whole"), [([0, 0], True), ([0], False), ([0, 1], False)])
def test_places_that_do_not_fit_records_and_scenes_are_refused(
    tmp_path: Path, places: list[int], is_whole: bool
) -> None:
    scenes, placements = (Scene("a", 8, 12),), (Placement(0, 0, 0, 8, 8), Placement(0, 0, 4, 8, 8))
    unknown = (float("nan"),) * 2
    header = Header(
        "test", ("grey",), (0,), (8, 8), False, ("a@0", "a@1"), ("a", "a"), unknown, KELVIN, "", scenes=scenes,
        placements=placements,
    )  # fmt: skip
    create(header, tmp_path / "d.h5")
    with h5py.File(tmp_path / "d.h5", "r+") as file:
        del file["placement/scene"]
        file["placement/scene"] = np.array(places)
    if is_whole:
        assert open_dataset(tmp_path / "d.h5").placements == placements
        return
    with pytest.raises(
        DataError, match=r"d.h5: expected placements of its records and scenes, found others; prepare it again"
    ):
        open_dataset(tmp_path / "d.h5")


def test_hdf5_from_elsewhere_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = np.zeros(3)
    with pytest.raises(DataError, match="expected format 'contrails-dataset' version 1, found 'None'"):
        open_dataset(tmp_path / "x.h5")


def test_rows_by_record(tiny_data: Path) -> None:
    dataset = open_dataset(tiny_data / "train.h5")
    assert dataset.rows(("1003", "1000")).tolist() == [3, 0]
    with pytest.raises(DataError, match=r"does not hold 1 of 2 records, such as 999"):
        dataset.rows(("1000", "999"))


def test_the_fingerprint_is_of_the_content(tiny_data: Path, tmp_path: Path) -> None:
    shutil.copy(tiny_data / "train.h5", tmp_path / "copy.h5")
    original = open_dataset(tiny_data / "train.h5").fingerprint
    assert open_dataset(tmp_path / "copy.h5").fingerprint == original
    assert open_dataset(tiny_data / "test.h5").fingerprint != original


def test_positive_is_strictly_more_than_half(tiny_data: Path) -> None:
    dataset = open_dataset(tiny_data / "train.h5")
    expected = [
        int(((2 * votes.astype(int) > annotators) & (votes != 255)).sum())
        for votes, annotators in zip(dataset.votes, dataset.annotators, strict=True)
    ]
    assert dataset.positive_pixels(range(12)).tolist() == expected
    assert dataset.positive_pixels([3, 0]).tolist() == [expected[3], expected[0]]
    assert sum(count > 0 for count in expected) == 6
