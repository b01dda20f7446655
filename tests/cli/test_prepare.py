"""`contrails prepare` as it is typed: where a shard goes, and what is refused before any work."""

import functools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
from image_files import write_raster

from contrails.cli.main import cli
from contrails.dataset.store import open_dataset
from contrails.errors import ClusterError, DataError

from raw_records import write_record


def prepare(*arguments: str) -> None:
    cli(["prepare", *arguments], standalone_mode=False)


def test_a_shard_lies_beside_the_whole(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = (str(tiny_data / "raw"), str(tmp_path / "data" / "d.h5"), "--shard", "2/5", "--workers", "1")
    prepare(*arguments)
    path = tmp_path / "data" / "d-2of5.h5"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert open_dataset(path).record_ids == ("1002", "1003")
    assert f"{path}: 2 records" in capsys.readouterr().out
    prepare(*arguments)
    assert "complete already: nothing to do" in capsys.readouterr().out


def test_the_last_shard_says_what_comes_next(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a d.h5"
    for share in ("2/3", "1/3"):
        prepare(str(tiny_data / "raw"), str(out), "--shard", share)
        assert "next" not in capsys.readouterr().out
    prepare(str(tiny_data / "raw"), str(out), "--shard", "3/3")
    assert f"all 3 shards are complete; next: `contrails data join '{out}'`\n" in capsys.readouterr().out


def test_frames_without_the_labelled_one_are_told(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(str(tiny_data / "raw"), str(tmp_path / "a.h5"), "--frames", "3,5")
    assert "warning: --frames 3,5 leaves out frame 4, which the annotators labelled" in capsys.readouterr().err
    prepare(str(tiny_data / "raw"), str(tmp_path / "b.h5"), "--frames", "3-5")
    assert "warning" not in capsys.readouterr().err


def test_missing_metadata_are_told_once_and_only_when_packing(
    tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        prepare(str(tiny_data / "raw"), str(tmp_path / "d.h5"))
    (message,) = caplog.messages
    assert message.startswith("12 of 12 records have no entry in train_metadata.json (first: 1000)")


def test_ctrl_c_says_how_much_is_packed(tmp_path: Path) -> None:
    for index in range(200):
        write_record(tmp_path / "raw", "train", f"{1000 + index}", size=128, bands=(14,), seed=index)
    command = [sys.executable, "-m", "contrails", "prepare", "raw", "d.h5", "--bands", "14", "--workers", "1"]
    # a shell starts what runs in the background with SIGINT ignored, and children inherit that
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heard
    )
    journal = tmp_path / ".d.h5.journal"
    while not journal.exists() or len(journal.read_text().splitlines()) < 2:
        assert process.poll() is None
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all processes
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    (packed,) = re.findall(r"stopped: (\d+) of 200 records are packed; the same command continues from there", said)
    assert 0 < int(packed) < 200
    assert "Traceback" not in said
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "d.h5: 200 records" in again.stdout
    assert "no entry" in said
    assert "no entry" not in again.stderr


INTERRUPTED = """
import os, signal, sys
if "forkserver" in " ".join(sys.orig_argv):
    os.kill(os.getpid(), signal.SIGINT)
    class Importing:
        def find_spec(self, name, path=None, target=None):
            if name == "contrails.dataset.pack":
                os.kill(os.getpid(), signal.SIGINT)
    sys.meta_path.insert(0, Importing())
"""
"""Ctrl-C as the processes start from which workers are forked, and as the workers import what they do."""


def test_ctrl_c_while_workers_are_imported_is_no_traceback(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED)
    done = subprocess.run(
        [sys.executable, "-m", "contrails", "prepare", str(tiny_data / "raw"), "d.h5", "--workers", "2"],
        cwd=tmp_path,
        env=dict(os.environ) | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert "Traceback" not in done.stderr
    assert (done.returncode, "d.h5: 12 records" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize("text", ["0/5", "6/5", "0/0", "x", "", "2", "2/", "/5", "2/5/6", "-1/5", "1.5/5", " 2/5"])
def test_a_share_that_is_none_is_refused(tiny_data: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"'.*': expected I/N with I from 1 to N, such as 2/5") as caught:
        prepare(str(tiny_data / "raw"), str(tmp_path / "d.h5"), "--shard", text)
    assert caught.value.param_hint == "--shard"
    assert list(tmp_path.iterdir()) == []


def test_jobs_are_not_submitted_for_what_cannot_be_packed(tiny_data: Path, tmp_path: Path) -> None:
    arguments = (str(tmp_path / "none"), str(tmp_path / "d.h5"), "--jobs", "2", "--site", "local")
    with pytest.raises(DataError, match="none"):
        prepare(*arguments)
    with pytest.raises(ClusterError, match="--jobs needs a site with a scheduler"):
        prepare(str(tiny_data / "raw"), *arguments[1:])
    assert list(tmp_path.iterdir()) == []


def test_more_shards_than_records_are_refused(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found 13 shards of 12 records"):
        prepare(str(tiny_data / "raw"), str(tmp_path / "d.h5"), "--shard", "1/13")
    assert list(tmp_path.iterdir()) == []


GREY = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32).astype(np.uint8)


def _scenes(raw: Path, scenes: str = "scenes", masks: str = "masks") -> None:
    write_raster(raw / scenes / "a.png", GREY)
    write_raster(raw / masks / "a.png", GREY % np.uint8(2))


def _images(raw: Path) -> None:
    write_raster(raw / "train/patient/a.png", GREY)
    (raw / "train.csv").write_text("record_id,encoded_pixels\na,1 2\n")


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (_scenes, "goes"),
        (lambda raw: _scenes(raw, "images", "labels"), "goes"),
        (_images, "goes"),
        (_images, "scenes"),
        (_scenes, "images-rle"),
        (lambda raw: write_record(raw, "train", "1"), "scenes"),
    ],
)
def test_the_layout_that_a_folder_looks_like_is_named(
    tmp_path: Path, make: Callable[[Path], object], layout: str
) -> None:
    raw, out = tmp_path / "my data", tmp_path / "d.h5"
    make(raw)
    with pytest.raises(DataError, match=f"my data looks like another layout than {layout}") as caught:
        prepare(str(raw), str(out), *([] if layout == "goes" else [f"--layout={layout}"]))
    (command,) = re.findall("`contrails (prepare .*--split.*)`", str(caught.value))
    cli(shlex.split(command), standalone_mode=False)
    assert open_dataset(out).num_records == 1


def test_a_folder_that_looks_like_nothing_gets_no_advice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected the records of 'train' in \S+, found no such folder") as caught:
        prepare(str(tmp_path), str(tmp_path / "d.h5"))
    assert "looks like" not in str(caught.value)
