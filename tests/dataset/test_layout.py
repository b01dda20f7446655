"""The layout of a dataset file: decided by its header alone, in its place before rows are written."""

import itertools
import math
from dataclasses import replace
from pathlib import Path

import h5py
import pytest

from contrails.dataset.layout import (
    Header,
    Values,
    create,
    header_of,
    opened,
    row_offsets,
    shard_path,
    target_of,
    write_columns,
    write_row,
)
from contrails.dataset.rle import Convention
from contrails.dataset.store import IGNORE, Placement, Scene, open_dataset
from contrails.sources.goes import KELVIN, SOURCE

HEADER = Header(
    split="train",
    band_names=("b11", "b14"),
    frames=(0, 4),
    size=(16, 24),
    with_marks=True,
    record_ids=("a", "b", "ü"),
    groups=("x", "x", "y"),
    timestamps=(0.5, math.nan, 1.5e9),
    values=KELVIN,
    source=SOURCE,
    label_frame=4,
    label_offset_px=(0.5, 0.5),
)
TILES = replace(
    HEADER,
    values=Values("uint8", 1 / 255, 0.0, "1"),
    source="scenes",
    options="--layout scenes --tile 16",
    label_frame=0,
    label_offset_px=(0.0, 0.0),
    convention=Convention("relative", "rows", "-1", ("ImageId", "EncodedPixels")),
    scenes=(Scene("s", 20, 30, "EPSG:32633", (30.0, 0.0, 5e5, 0.0, -30.0, 4e6), "val"), Scene("t", 5, 6)),
    placements=(Placement(0, 0, 0, 16, 24), Placement(0, 0, 24, 16, 6), Placement(1, 0, 0, 5, 6)),
)


@pytest.mark.parametrize(
    "header", [HEADER, replace(HEADER, with_marks=False), HEADER.slice(2, 3), TILES, TILES.slice(3, 3)]
)
def test_a_file_says_the_header_it_was_made_with(tmp_path: Path, header: Header) -> None:
    create(header, tmp_path / "d.h5")
    found = header_of(open_dataset(tmp_path / "d.h5"))
    assert found.differences(header) == []
    assert found.digest == header.digest


def test_arrays_begin_at_pages_and_do_not_overlap(tmp_path: Path) -> None:
    create(HEADER, tmp_path / "d.h5")
    found = row_offsets(tmp_path / "d.h5")
    assert {name: size for name, (_, size) in found.items() if "/" not in name} == {
        "bands": 2 * 2 * 2 * 16 * 24, "votes": 16 * 24, "marks": 2 * 16 * 24, "annotators": 1,
    }  # fmt: skip
    assert all(found[name][0] % 4096 == 0 for name in ("bands", "votes", "marks") if 3 * found[name][1] >= 2048)
    spans = sorted((offset, offset + 3 * size) for offset, size in found.values())
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))
    assert spans[-1][1] <= (tmp_path / "d.h5").stat().st_size


def test_a_file_says_what_it_holds_without_this_package(tmp_path: Path) -> None:
    create(TILES, tmp_path / "d.h5")
    with h5py.File(tmp_path / "d.h5") as file:
        assert file["band"].asstr()[:].tolist() == ["b11", "b14"]
        assert file["bands"].dims[2][0].name == "/band"
        fill = file["votes"].attrs["_FillValue"]
        assert (fill, fill.dtype) == (IGNORE, file["votes"].dtype)  # netCDF wants the array's own type
        assert file["annotators"].attrs["flag_values"].tolist() == [0]
        assert file["annotators"].attrs["flag_meanings"] == "unlabelled"
        marks = file["marks"].attrs
        assert dict(zip(marks["flag_masks"].tolist(), marks["flag_meanings"].split(), strict=True))[4] == "annotator_2"
        described = ("votes", "marks", "annotators", "digests", "placement", "scene")
        assert all(file[name].attrs["long_name"] for name in described)


def test_rows_come_where_hdf5_looks_for_them(tmp_path: Path) -> None:
    create(HEADER, tmp_path / "d.h5")
    found = row_offsets(tmp_path / "d.h5")
    with opened(tmp_path / "d.h5") as descriptor:
        for row in range(3):
            write_row(descriptor, found["votes"], row, bytes([row + 1]) * (16 * 24))
    digests = {name: bytes(range(96)) for name in ("bands", "votes", "marks")}
    write_columns(tmp_path / "d.h5", bytes((4, 5, 6)), digests)
    with h5py.File(tmp_path / "d.h5") as file:
        assert file["votes"][:].min(axis=(1, 2)).tolist() == file["votes"][:].max(axis=(1, 2)).tolist() == [1, 2, 3]
        assert file["annotators"][:].tolist() == [4, 5, 6]
        assert file["digests/marks"][1].tolist() == list(range(32, 64))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_slices_hold_every_record_once_in_order(count: int) -> None:
    shards = [HEADER.slice(index, count) for index in range(1, count + 1)]
    assert sum((shard.record_ids for shard in shards), ()) == HEADER.record_ids
    assert sum((shard.groups for shard in shards), ()) == HEADER.groups
    assert all(shard.record_ids for shard in shards)
    assert {shard.shard.plan for shard in shards if shard.shard} == {HEADER.digest}


def test_every_field_counts() -> None:
    changes = {
        "split": "test", "band_names": ("b11", "b15"), "frames": (4, 0), "size": (24, 16), "with_marks": False,
        "record_ids": ("a", "b", "c"), "groups": ("x", "y", "y"), "timestamps": (0.5, 0.5, 1.5e9),
        "shard": HEADER.slice(1, 2).shard, "values": TILES.values, "source": "scenes", "options": "--tile 16",
        "label_frame": 0, "label_offset_px": (0.0, 0.0), "convention": TILES.convention, "scenes": TILES.scenes,
        "placements": TILES.placements,
    }  # fmt: skip
    for name, value in changes.items():
        changed = replace(HEADER, **{name: value})  # type: ignore[arg-type]
        assert changed.digest != HEADER.digest, name
        assert HEADER.differences(changed) == [name]


def test_a_shard_lies_beside_the_whole() -> None:
    assert shard_path(Path("data/train.v2.h5"), 2, 5) == Path("data/train.v2-2of5.h5")


def test_what_the_masks_show_has_a_name(tmp_path: Path) -> None:
    tiles = replace(TILES, options="--layout=scenes --tile=16")
    names = {
        "contrail": HEADER,
        "positive": tiles,
        "Fish": replace(tiles, convention=replace(tiles.convention, label="Fish")),
        "cell membrane": replace(tiles, options=f"{tiles.options} '--target-name=cell membrane'"),
    }
    for name, header in names.items():
        path = tmp_path / f"{name}.h5"
        create(header, path)
        assert target_of(open_dataset(path)) == name
