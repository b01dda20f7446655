"""Packing: values kept, files equal however often it was killed, nothing half-done under a final name."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest

from contrails.cli.main import cli
from contrails.dataset.pack import pack
from contrails.dataset.store import open_dataset
from contrails.dataset.verify import damaged_rows
from contrails.errors import DataError, RunError, StorageError
from contrails.inputs.composites import Composite, channels_of, compose
from contrails.inspect.info import describe
from contrails.recipe.data import DataSection
from contrails.sources.goes import make_plan

from raw_records import write_record


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    for index in range(5):
        write_record(tmp_path / "raw", "train", f"{10 + index}", annotators=4 + index % 2, seed=index)
    return tmp_path / "raw"


def prepare(raw: Path, out: Path, split: str = "train") -> bool:
    return pack(make_plan(raw, split, (11, 14, 15), (0, 4)), out, num_workers=2)


def test_values_are_kept(raw: Path, tmp_path: Path) -> None:
    assert prepare(raw, tmp_path / "d.h5")
    dataset = open_dataset(tmp_path / "d.h5")
    assert dataset.record_ids == ("10", "11", "12", "13", "14")
    assert dataset.annotators.tolist() == [4, 5, 4, 5, 4]
    assert (dataset.band_names, dataset.frames) == (("b11", "b14", "b15"), (0, 4))
    assert (dataset.label_frame, dataset.label_offset_px) == (4, (0.5, 0.5))
    for row, record_id in enumerate(dataset.record_ids):
        folder = raw / "train" / record_id
        kelvin = dataset.bands[row] * dataset.scale_factor + dataset.add_offset
        for position, band in enumerate((11, 14, 15)):
            expected = np.load(folder / f"band_{band}.npy")[:, :, [0, 4]].transpose(2, 0, 1)
            assert np.abs(kelvin[:, position] - expected).max() <= 0.0051
        individual = np.load(folder / "human_individual_masks.npy")[:, :, 0]
        assert np.array_equal(dataset.votes[row], individual.sum(axis=2))
        assert dataset.marks is not None
        assert np.array_equal(dataset.marks[row] >> 2 & 1, individual[:, :, 2])
    assert list(damaged_rows(dataset)) == []


def test_the_file_is_readable_without_this_package(raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "d.h5")
    with h5py.File(tmp_path / "d.h5") as file:
        assert file["bands"].attrs["units"] == "K"
        assert [scale[0].name for scale in (axis.values() for axis in file["bands"].dims)] == [
            "/record_id", "/frame", "/band", "/y", "/x",
        ]  # fmt: skip
        assert file["bands"].id.get_offset() % 4096 == 0
        assert file["record_id"].asstr()[0] == "10"


def test_the_same_records_are_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    prepare(raw, tmp_path / "a.h5")
    time.sleep(1.1)  # HDF5 can keep times of creation, in seconds
    prepare(raw, tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5", "raw"]


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for index in range(150):
        write_record(raw, "train", f"{1000 + index}", seed=index)
    prepare(raw, tmp_path / "whole.h5")
    command = [sys.executable, "-m", "contrails", "prepare", str(raw), str(tmp_path / "killed.h5"), "--frames", "0,4"]
    kills = 0
    for delay in (0.2, 0.25, 0.3, 0.35, 0.4, 0.5):
        process = subprocess.Popen(
            command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        time.sleep(delay)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_nothing_lives_on_when_it_is_killed(tmp_path: Path) -> None:
    raw, part = tmp_path / "raw", tmp_path / ".d.h5.part"
    for index in range(300):
        write_record(raw, "train", f"{1000 + index}", seed=index)
    command = [sys.executable, "-m", "contrails", "prepare", str(raw), str(tmp_path / "d.h5"), "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    # the forkserver, its resource tracker and two workers
    while len(children := psutil.Process(process.pid).children(recursive=True)) < 4 or not part.exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
    process.kill()  # itself alone, not its group
    process.wait()
    assert psutil.wait_procs(children, timeout=30)[1] == []


def test_rows_in_the_journal_are_not_read_again(raw: Path, tmp_path: Path) -> None:
    np.save(raw / "train" / "14" / "band_14.npy", np.zeros(3, np.float32))
    with pytest.raises(DataError, match=r"band_14.npy: expected float32"):
        for _ in range(2):  # rows are written in tasks of many: the second call finds the first one's journal
            prepare(raw, tmp_path / "d.h5")
    assert not (tmp_path / "d.h5").exists()
    shutil.rmtree(raw / "train" / "14")
    write_record(raw, "train", "14", seed=4)
    assert prepare(raw, tmp_path / "d.h5")
    prepare(raw, tmp_path / "again.h5")
    assert (tmp_path / "d.h5").read_bytes() == (tmp_path / "again.h5").read_bytes()


def test_a_complete_file_is_left_alone_and_another_is_refused(raw: Path, tmp_path: Path) -> None:
    assert prepare(raw, tmp_path / "d.h5")
    assert not prepare(raw, tmp_path / "d.h5")
    with pytest.raises(DataError, match=r"d.h5 exists and differs in band_names, frames \(found .*never overwritten"):
        pack(make_plan(raw, "train", (11,), (4,)), tmp_path / "d.h5", 1)


def test_a_shard_is_a_file_of_its_own(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw, tmp_path / "mounted" / "elsewhere")
    first = make_plan(raw, "train", (11, 14, 15), (0, 4)).shard(1, 2)
    second = make_plan(tmp_path / "mounted" / "elsewhere", "train", (11, 14, 15), (0, 4)).shard(2, 2)
    for plan, name in ((first, "1.h5"), (second, "2.h5")):
        assert pack(plan, tmp_path / name, 1)
        assert not pack(plan, tmp_path / name, 1)
    prepare(raw, tmp_path / "whole.h5")
    whole, parts = open_dataset(tmp_path / "whole.h5"), [open_dataset(tmp_path / name) for name in ("1.h5", "2.h5")]
    assert [part.record_ids for part in parts] == [("10", "11"), ("12", "13", "14")]
    assert np.array_equal(np.concatenate([part.bands for part in parts]), whole.bands)
    assert all(list(damaged_rows(part)) == [] for part in parts)
    with h5py.File(tmp_path / "1.h5") as one, h5py.File(tmp_path / "2.h5") as two:
        assert (one.attrs["shard"].tolist(), two.attrs["shard"].tolist()) == ([1, 2], [2, 2])
        assert one.attrs["plan"] == two.attrs["plan"]
    with pytest.raises(DataError, match=r"1.h5 exists and differs in .*shard"):
        pack(second, tmp_path / "1.h5", 1)


def test_a_shard_goes_on_to_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    plan = make_plan(raw, "train", (11, 14, 15), (0, 4)).shard(2, 2)
    pack(plan, tmp_path / "whole.h5", 1)
    with pytest.raises(DataError, match=r"band_14.npy: expected float32"):
        (raw / "train" / "14" / "band_14.npy").rename(tmp_path / "kept.npy")
        np.save(raw / "train" / "14" / "band_14.npy", np.zeros(3, np.float32))
        pack(plan, tmp_path / "d.h5", 1)
    (tmp_path / "kept.npy").replace(raw / "train" / "14" / "band_14.npy")
    assert pack(plan, tmp_path / "d.h5", 1)
    assert (tmp_path / "d.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_more_shards_than_records_are_refused(raw: Path) -> None:
    with pytest.raises(DataError, match=r"found 6 shards of 5 records of 'train' in .*raw; make 5 shards or fewer"):
        make_plan(raw, "train", (11, 14, 15), (4,)).shard(6, 6)


def test_records_without_masks_belong_to_test(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_record(tmp_path / "raw", split, "1", annotators=0, pixel_mask=False)
    with pytest.raises(
        DataError, match=r"record 1: expected human_individual_masks.npy or .*, found neither; .*--split test"
    ):
        prepare(tmp_path / "raw", tmp_path / "train.h5")
    assert prepare(tmp_path / "raw", tmp_path / "test.h5", "test")
    assert open_dataset(tmp_path / "test.h5").annotators.tolist() == [0]
    assert open_dataset(tmp_path / "test.h5").marks is None


@pytest.mark.parametrize(
    ("size", "offset", "message"),
    [(40, 0.0, r"record 20 .* expected \(32, 32\) pixels .*, found \(40, 40\)"),
     (32, 500.0, r"record 20 .*expected kelvin, .*found values from")],
)  # fmt: skip
def test_a_record_unlike_the_others_is_named(raw: Path, tmp_path: Path, size: int, offset: float, message: str) -> None:
    folder = write_record(raw, "train", "20", size=size)
    np.save(folder / "band_14.npy", np.load(folder / "band_14.npy") + np.float32(offset))
    with pytest.raises(DataError, match=message):
        prepare(raw, tmp_path / "d.h5")


def test_two_at_once_are_refused(raw: Path, tmp_path: Path) -> None:
    with (tmp_path / ".d.h5.journal").open("a") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        with pytest.raises(RunError, match=r"another contrails prepare is writing d.h5"):
            prepare(raw, tmp_path / "d.h5")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_it_warns_once_and_goes_on(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    _refuse_locks(monkeypatch, number)
    assert prepare(raw, tmp_path / "d.h5")
    assert caplog.text.count(f"{tmp_path} has no file locks ({os.strerror(number)}): going on without") == 1
    assert list(damaged_rows(open_dataset(tmp_path / "d.h5"))) == []


def test_another_error_of_the_lock_is_one(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _refuse_locks(monkeypatch, errno.EIO)
    with pytest.raises(StorageError, match="Input/output error"):
        prepare(raw, tmp_path / "d.h5")


def _refuse_locks(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_full_disk_is_said_and_the_work_goes_on_later(raw: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = (
        os.geteuid() == 0
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], check=False, capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("needs root to mount a small tmpfs")
    try:
        with pytest.raises(StorageError, match="No space left on device"):
            prepare(raw, small / "d.h5")
        assert not (small / "d.h5").exists()
        subprocess.run(["mount", "-o", "remount,size=10m", str(small)], check=True)
        assert prepare(raw, small / "d.h5")
        assert list(damaged_rows(open_dataset(small / "d.h5"))) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_a_folder_that_cannot_be_written_is_said(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        prepare(raw, tmp_path / "file" / "d.h5")


@pytest.mark.parametrize("command", [["prepare", "raw", "closed/d.h5"], ["data", "info", "closed/d.h5"]])
def test_a_folder_that_may_not_be_entered_is_said(raw: Path, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "closed").mkdir(mode=0o000)
    # root without its capabilities is a user like any other
    drop = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"] if os.geteuid() == 0 else []
    if drop and subprocess.run([*drop, "true"], check=False, capture_output=True).returncode:
        pytest.skip("root may enter every folder here")
    done = subprocess.run(
        [*drop, sys.executable, "-m", "contrails", *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (7, ""), done.stderr
    assert "closed/d.h5: Permission denied; check the permissions of closed" in done.stderr


def test_real_records_end_to_end(real_data: Path, tmp_path: Path) -> None:
    for split, bands in (("train", (11, 14, 15)), ("validation", (11, 14, 15)), ("test", (11, 14, 15))):
        plan = make_plan(real_data, split, bands, (4,))
        pack(plan, tmp_path / f"{split}.h5", 2)
        dataset = open_dataset(tmp_path / f"{split}.h5")
        for row, record_id in enumerate(dataset.record_ids):
            folder = real_data / split / record_id
            raw = np.stack([np.load(folder / f"band_{band:02d}.npy")[:, :, 4] for band in bands])
            assert np.abs(dataset.bands[row, 0] * 0.01 + 273.15 - raw).max() <= 0.0051
            if split != "test":
                truth = np.load(folder / "human_pixel_masks.npy")[:, :, 0]
                assert np.array_equal(2 * dataset.votes[row].astype(int) > dataset.annotators[row], truth)
        if split == "validation":
            assert not np.isnan(dataset.timestamps).any()
    import torch

    train = open_dataset(tmp_path / "train.h5")
    published_ash = Composite(channels_of(DataSection(dataset="d", filelist="f"), train.band_names))
    ash = compose(torch.from_numpy(train.bands), published_ash, train.band_names, 0.01, 273.15)[:, 0]
    for row, record_id in enumerate(train.record_ids):
        b11, b14, b15 = (np.load(real_data / "train" / record_id / f"band_{b}.npy")[:, :, 4] for b in (11, 14, 15))
        published = np.stack([(b15 - b14 + 4) / 6, (b14 - b11 + 4) / 9, (b14 - 243) / 60]).clip(0, 1)
        span = np.array([6, 9, 60])[:, None, None]
        assert (np.abs(ash[row].numpy() - published) * span).max() <= 0.0102


def test_info_and_verify(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d.h5"
    prepare(raw, path)
    found = describe(open_dataset(path))
    b15 = np.stack([np.load(p / "band_15.npy")[:, :, [0, 4]] for p in sorted((raw / "train").iterdir())])
    assert found["bands"]["b15"]["mean"] == pytest.approx(b15.mean(), abs=0.005)
    assert found["bands"]["b15"]["std"] == pytest.approx(b15.std(), abs=0.005)
    assert found["positive_records"] == 5
    cli(["data", "verify", str(path)], standalone_mode=False)
    assert "5 records, all intact" in capsys.readouterr().out
    offset = h5py.File(path)["votes"].id.get_offset() + 2 * 32 * 32 + 7
    content = bytearray(path.read_bytes())
    content[offset] ^= 4
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"record 12: /votes is not what was written"):
        cli(["data", "verify", str(path)], standalone_mode=False)


def test_what_is_cut_short_while_it_is_verified_is_named(raw: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.h5"
    prepare(raw, path)
    rows = damaged_rows(dataset := open_dataset(path), lambda: os.truncate(path, 8192))
    assert {row.split(":")[0] for row in rows} == {f"record {record_id}" for record_id in dataset.record_ids[1:]}
