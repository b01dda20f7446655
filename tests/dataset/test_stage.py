"""Staging: copied once, verified, shared; where there is no room the file is used where it is."""

import io
import multiprocessing
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from contrails.dataset.stage import stage
from contrails.dataset.store import open_dataset
from contrails.errors import DataError


def _flip_annotators(content: bytes) -> bytes:
    changed = bytearray(content)
    with h5py.File(io.BytesIO(content)) as file:
        changed[file["annotators"].id.get_offset()] ^= 1
    return bytes(changed)


def test_a_copy_is_made_once(tiny_data: Path, tmp_path: Path) -> None:
    source = tiny_data / "train.h5"
    copy = stage(source, tmp_path / "scratch")
    assert copy.parent == tmp_path / "scratch"
    assert copy.read_bytes() == source.read_bytes()
    written = copy.stat().st_mtime_ns
    assert stage(source, tmp_path / "scratch") == copy
    assert copy.stat().st_mtime_ns == written
    assert open_dataset(copy).fingerprint == open_dataset(source).fingerprint


def test_many_at_once_make_one(tiny_data: Path, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        copies = pool.starmap(stage, [(tiny_data / "train.h5", tmp_path)] * 6)
    assert len(set(copies)) == 1
    assert [path.name for path in tmp_path.glob("*.h5")] == [copies[0].name]


def test_what_a_killed_one_left_is_cleared(tiny_data: Path, tmp_path: Path) -> None:
    copy = stage(tiny_data / "train.h5", tmp_path)
    leftover = copy.with_name(f".{copy.name}.1-0123abcd.tmp")
    copy.rename(leftover)
    assert stage(tiny_data / "train.h5", tmp_path) == copy
    assert not leftover.exists()


@pytest.mark.parametrize("damage", [lambda content: content[:9000], lambda content: b"", _flip_annotators])
def test_a_damaged_copy_is_made_anew(
    tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    source = tiny_data / "train.h5"
    copy = stage(source, tmp_path)
    copy.write_bytes(damage(source.read_bytes()))
    assert stage(source, tmp_path) == copy
    assert copy.read_bytes() == source.read_bytes()
    assert f"{copy} is damaged and is copied again: " in caplog.text


def test_what_changed_beside_the_rows_while_it_was_copied_is_found(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "contrails.dataset.stage.copy_blocks",
        lambda source, target, _: target.write(_flip_annotators(source.read())),
    )
    with pytest.raises(
        DataError, match=r"the copy of .*train.h5 is damaged.*\n.*annotators differ from those of the file"
    ):
        stage(tiny_data / "train.h5", tmp_path)
    assert list(tmp_path.glob("*.h5")) == []


def test_a_damaged_source_is_not_staged(tiny_data: Path, tmp_path: Path) -> None:
    source = tmp_path / "d.h5"
    content = bytearray((tiny_data / "train.h5").read_bytes())
    content[h5py.File(tiny_data / "train.h5")["bands"].id.get_offset()] ^= 1
    source.write_bytes(content)
    with pytest.raises(DataError, match=r"the copy of .*d.h5 is damaged.*\n.*record 1000: /bands"):
        stage(source, tmp_path / "scratch")
    assert list((tmp_path / "scratch").glob("*.h5")) == []


def test_no_room_means_no_copy(tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("needs root to mount a small tmpfs")
    try:
        assert stage(tiny_data / "train.h5", small) == tiny_data / "train.h5"
        assert "No space left on device" in caplog.text
        assert list(small.glob("*.h5")) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)
