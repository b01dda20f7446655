"""Joining shards: the bytes of one packing, or an error that names the shard; never half a file."""

import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from contrails.dataset.join import join
from contrails.dataset.layout import row_offsets, shard_path
from contrails.dataset.pack import pack
from contrails.dataset.store import open_dataset
from contrails.errors import DataError, RunError, StorageError
from contrails.sources.goes import make_plan

from raw_records import write_metadata, write_record

KILLED = """
import os, signal, sys
from pathlib import Path
from contrails.dataset import join
written = []
def write_row(*arguments, original=join.write_row):
    written.append(original(*arguments))
    if len(written) == 7:
        os.kill(os.getpid(), signal.SIGKILL)
join.write_row = write_row
join.join(Path(sys.argv[1]))
"""


def make_raw(root: Path, *, tile: str = "tile", num_records: int = 7) -> Path:
    for index in range(num_records):
        write_record(root, "train", f"{10 + index}", size=16, annotators=4 + index % 2, seed=index)
    times = [{"record_id": f"{10 + i}", "tile": f"{tile}{i // 2}", "timestamp": 1.5e9 + i} for i in range(5)]
    write_metadata(root, "train", times)  # two records have no time
    return root


def make_shard(raw: Path, out: Path, index: int, count: int = 3, frames: tuple[int, ...] = (0, 4)) -> Path:
    path = shard_path(out, index, count)
    pack(make_plan(raw, "train", (11, 14, 15), frames).shard(index, count), path, 1)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with raw records and the file that one packing makes of them; shards of it by threes."""
    root = tmp_path_factory.mktemp("made")
    pack(make_plan(make_raw(root / "raw"), "train", (11, 14, 15), (0, 4)), root / "whole.h5", 1)
    for index in (1, 2, 3):
        make_shard(root / "raw", root / "shards" / "d.h5", index)
    return root


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """What is to be joined: its three shards lie beside it."""
    shutil.copytree(made / "shards", tmp_path / "data")
    return tmp_path / "data" / "d.h5"


def edit(path: Path, array: str, row: int) -> None:
    """Flip one bit of a row."""
    offset, size = row_offsets(path)[array]
    with path.open("r+b") as file:
        file.seek(offset + row * size + size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_joined_file_is_what_one_packing_makes(made: Path, out: Path) -> None:
    joined = join(out)
    assert (joined.num_records, joined.num_shards, joined.made) == (7, 3, True)
    assert out.read_bytes() == (made / "whole.h5").read_bytes()
    assert names(out.parent) == ["d-1of3.h5", "d-2of3.h5", "d-3of3.h5", "d.h5"]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_any_number_of_shards_will_do(made: Path, tmp_path: Path, count: int) -> None:
    for index in range(1, count + 1):
        make_shard(made / "raw", tmp_path / "d.h5", index, count)
    join(tmp_path / "d.h5")
    assert (tmp_path / "d.h5").read_bytes() == (made / "whole.h5").read_bytes()


def test_unlabelled_records_are_joined_too(tmp_path: Path) -> None:
    for index in range(3):
        write_record(tmp_path / "raw", "test", f"{index}", size=16, annotators=0, pixel_mask=False, seed=index)
    plan = make_plan(tmp_path / "raw", "test", (14,), (4,))
    pack(plan, tmp_path / "whole.h5", 1)
    for index in (1, 2):
        pack(plan.shard(index, 2), tmp_path / f"d-{index}of2.h5", 1)
    join(tmp_path / "d.h5")
    assert (tmp_path / "d.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_real_records_are_joined(real_data: Path, tmp_path: Path) -> None:
    plan = make_plan(real_data, "validation", (11, 14, 15), (4,))
    pack(plan, tmp_path / "whole.h5", 2)
    for index in (1, 2):
        pack(plan.shard(index, 2), tmp_path / f"d-{index}of2.h5", 2)
    join(tmp_path / "d.h5")
    assert (tmp_path / "d.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_a_file_that_is_there_is_left_alone(out: Path) -> None:
    join(out)
    written = out.stat().st_mtime_ns
    assert not join(out).made
    assert out.stat().st_mtime_ns == written
    assert names(out.parent) == ["d-1of3.h5", "d-2of3.h5", "d-3of3.h5", "d.h5"]


@pytest.mark.parametrize("array", ["bands", "marks"])
def test_a_file_that_is_there_is_read_before_it_counts_as_complete(out: Path, array: str) -> None:
    join(out)
    edit(out, array, 3)
    with pytest.raises(DataError, match=rf"d.h5 is damaged; remove it, and run .*\nrecord 13: /{array} is not what"):
        join(out)
    out.unlink()
    assert join(out).made


def test_another_file_of_that_name_is_refused(made: Path, out: Path) -> None:
    pack(make_plan(made / "raw", "train", (11, 14, 15), (4,)), out, 1)
    before = out.read_bytes()
    with pytest.raises(DataError, match=r"d.h5 exists and differs from the shards .*\(in frames\)"):
        join(out)
    assert out.read_bytes() == before


def test_other_rows_under_that_name_are_refused(made: Path, out: Path) -> None:
    shutil.copytree(made / "raw", out.parent / "raw")
    mask = out.parent / "raw" / "train" / "12" / "human_individual_masks.npy"
    np.save(mask, 1 - np.load(mask))
    pack(make_plan(out.parent / "raw", "train", (11, 14, 15), (0, 4)), out, 1)
    with pytest.raises(DataError, match=r"d.h5 exists and differs from the shards .*\(in rows\)"):
        join(out)


def test_no_shards_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"called d-1of5.h5 and so on, found none; .*RAW \S+/d.h5 --shard 1/5"):
        join(tmp_path / "d.h5")
    with pytest.raises(DataError, match="found none"):
        join(tmp_path / "nowhere" / "d.h5")
    assert names(tmp_path) == []


def test_missing_shards_are_named_with_their_command(out: Path) -> None:
    for index in (1, 3):
        shard_path(out, index, 3).unlink()
    options = "--split train --bands 11,14,15 --frames 0,4"
    with pytest.raises(DataError) as caught:
        join(out)
    assert str(caught.value).splitlines() == [
        f"expected 3 shards in {out.parent}, 2 of them are missing; make them:",
        f"d-1of3.h5: `contrails prepare RAW {out} {options} --shard 1/3`",
        f"d-3of3.h5: `contrails prepare RAW {out} {options} --shard 3/3`",
    ]
    assert names(out.parent) == ["d-2of3.h5"]


def test_the_command_of_the_message_makes_the_shard(made: Path, out: Path) -> None:
    from contrails.cli.main import cli

    shard_path(out, 2, 3).unlink()
    with pytest.raises(DataError) as caught:
        join(out)
    command = str(caught.value).split("`")[1].replace("RAW", str(made / "raw")).split()
    cli(command[1:], standalone_mode=False)
    join(out)
    assert out.read_bytes() == (made / "whole.h5").read_bytes()


def test_two_divisions_are_refused(made: Path, out: Path) -> None:
    make_shard(made / "raw", out, 2, 4)
    with pytest.raises(
        DataError, match=r"of one number N .*, found those of 2 numbers, such as d-1of3.h5 and d-2of4.h5 in"
    ):
        join(out)


def test_a_foreign_shard_is_named(out: Path, tmp_path: Path) -> None:
    shard_path(out, 2, 3).unlink()
    make_shard(make_raw(tmp_path / "others", tile="other"), out, 2)
    with pytest.raises(DataError, match=r"d-2of3.h5 differ from d-1of3.h5: .*ids, locations or times; .*--shard 2/3"):
        join(out)
    assert not out.exists()


def test_a_shard_of_other_frames_is_foreign(made: Path, out: Path) -> None:
    shard_path(out, 1, 3).unlink()
    make_shard(made / "raw", out, 1, frames=(3, 4))
    with pytest.raises(
        DataError, match=r"d-1of3.h5 has frames \(3, 4\), expected \(0, 4\); .*--frames 0,4 --shard 1/3"
    ):
        join(out)


def test_it_is_said_in_what_a_shard_differs(made: Path, out: Path, tmp_path: Path) -> None:
    shard_path(out, 3, 3).unlink()
    make_shard(make_raw(tmp_path / "more", num_records=12), out, 3)
    with pytest.raises(DataError, match=r"d-3of3.h5 has 4 records, expected about 2"):
        join(out)
    shard_path(out, 3, 3).unlink()
    fewer = make_raw(tmp_path / "fewer")
    shutil.rmtree(fewer / "train" / "16")
    (fewer / "train" / "11").rename(fewer / "train" / "091")
    make_shard(fewer, out, 3)
    with pytest.raises(DataError, match=r"d-3of3.h5 was made from another number of records, or with other ids"):
        join(out)
    pack(make_plan(made / "raw", "train", (14,), (0, 4)).shard(2, 3), tmp_path / "new.h5", 1)
    (tmp_path / "new.h5").replace(shard_path(out, 2, 3))
    shard_path(out, 3, 3).unlink()
    make_shard(made / "raw", out, 3)
    with pytest.raises(DataError, match=r"d-2of3.h5 has bands \('b14',\), expected \('b11', 'b14', 'b15'\)"):
        join(out)


def test_a_whole_file_is_no_shard(made: Path, out: Path) -> None:
    shutil.copy(made / "whole.h5", shard_path(out, 2, 3))
    with pytest.raises(DataError, match=r"d-2of3.h5: expected a shard, found a whole dataset file") as caught:
        join(out)
    keep, make = str(caught.value).split("`")[1::2]
    assert "remove" not in str(caught.value)
    subprocess.run(keep, shell=True, check=True)
    assert (out.parent / "d-2of3.whole.h5").read_bytes() == (made / "whole.h5").read_bytes()
    assert make == f"contrails prepare RAW {out} --shard 2/3"


def test_a_renamed_shard_is_refused(out: Path) -> None:
    shutil.copy(shard_path(out, 1, 3), shard_path(out, 2, 3))
    with pytest.raises(DataError, match=r"d-2of3.h5: expected shard 2 of 3, found shard 1 of 3"):
        join(out)


def test_a_shard_that_was_cut_short_is_named(out: Path) -> None:
    path = shard_path(out, 3, 3)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(DataError, match=r"d-3of3.h5.*(expected a complete HDF5 file|is truncated)"):
        join(out)
    assert not out.exists()


@pytest.mark.parametrize("array", ["bands", "votes", "marks", "digests/votes"])
def test_a_damaged_row_is_named(out: Path, array: str) -> None:
    edit(shard_path(out, 2, 3), array, 1)
    name = array.removeprefix("digests/")
    with pytest.raises(DataError, match=rf"d-2of3.h5, record 13: /{name} is not what was written; .*--shard 2/3"):
        join(out)
    assert "d.h5" not in names(out.parent)
    assert not [name for name in names(out.parent) if name.endswith(".tmp")]


def test_a_shard_whose_records_were_changed_is_refused(out: Path) -> None:
    with h5py.File(shard_path(out, 2, 3), "r+") as file:
        file["group"][0] = "elsewhere"
    with pytest.raises(DataError, match=r"of the plan, found others in .*: at least one file was changed"):
        join(out)


def test_killed_it_leaves_no_file_and_the_next_one_succeeds(made: Path, out: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(out)], check=False, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    assert not out.exists()
    assert [name for name in names(out.parent) if name.endswith(".tmp")]
    assert join(out).made
    assert out.read_bytes() == (made / "whole.h5").read_bytes()
    assert names(out.parent) == ["d-1of3.h5", "d-2of3.h5", "d-3of3.h5", "d.h5"]


def test_two_at_once_are_refused(out: Path) -> None:
    import fcntl

    with (out.parent / ".d.h5.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match=r"another contrails data join is writing d.h5; wait for it"):
            join(out)


def test_a_full_disk_is_said(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", pwrite)
    with pytest.raises(StorageError, match=r"cannot write .*No space left on device"):
        join(out)
    assert not [name for name in names(out.parent) if name == "d.h5" or name.endswith(".tmp")]


def test_neighbours_are_no_shards(made: Path, out: Path) -> None:
    for name in ("e-1of2.h5", "d-x-1of2.h5", "d-1of2.h5.bak", "d-01of2.h5"):
        (out.parent / name).write_text("")
    join(out)
    assert open_dataset(out).fingerprint == open_dataset(made / "whole.h5").fingerprint


def test_the_shards_can_be_removed_and_the_same_command_still_finds_the_file_whole(out: Path) -> None:
    assert join(out).made
    for index in (1, 2, 3):
        shard_path(out, index, 3).unlink()
    again = join(out)
    assert (again.made, again.num_records, again.num_shards) == (False, 7, 0)
    edit(out, "votes", 2)
    with pytest.raises(DataError, match="make its shards again, remove it, and run the same command again"):
        join(out)
