"""Files: complete or absent whatever happens in between, created once however many try, cut lines left out."""

import errno
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from contrails import files
from contrails.errors import StorageError
from contrails.files import (
    append_json_line,
    atomic_folder,
    atomic_path,
    copy_blocks,
    create_exclusive,
    read_json,
    read_json_lines,
    remove_leftovers,
    sha256,
    storage,
    to_json,
    write_atomic,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "file"


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every flush says that there is no space."""

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)


def test_written_whole_under_its_name(path: Path) -> None:
    write_atomic(path, "grün")
    assert path.read_bytes() == "grün".encode()
    write_atomic(path, b"\x00new")
    assert path.read_bytes() == b"\x00new"
    assert list(path.parent.iterdir()) == [path]


def test_a_body_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    write_atomic(path, "old")
    with pytest.raises(RuntimeError, match="half"), atomic_path(path) as temporary:
        temporary.write_text("half")
        assert temporary.parent == path.parent
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_is_a_storage_error_that_names_the_file(path: Path) -> None:
    message = rf"cannot write {path}: No space left on device; check the free space, .* {path.parent}, then run"
    with pytest.raises(StorageError, match=message):
        write_atomic(path, "x")
    with pytest.raises(StorageError, match=message):
        create_exclusive(path, "x")
    assert list(path.parent.iterdir()) == []
    with pytest.raises(StorageError, match=message):
        append_json_line(path, {}, durable=True)


def test_the_content_is_on_disk_before_the_name_and_the_name_after(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    fsync, replace = files.fsync, Path.replace

    def flushed(flushed: Path) -> None:
        events.append("flush folder" if flushed == path.parent else "flush file")
        fsync(flushed)

    def renamed(source: Path, target: Path) -> Path:
        events.append("rename")
        return replace(source, target)

    monkeypatch.setattr(files, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    write_atomic(path, "x")
    assert events == ["flush file", "rename", "flush folder"]
    events.clear()
    create_exclusive(path.with_name("other"), "x")
    append_json_line(path.with_name("lines"), {}, durable=True)
    assert events == ["flush file", "flush folder", "flush folder"]


def test_killed_while_writing_there_is_the_old_file_or_the_new_one(path: Path) -> None:
    write_atomic(path, "0" * 100_000)
    code = (
        "import sys; from pathlib import Path; from contrails.files import write_atomic\n"
        "for number in range(1, 10**6): write_atomic(Path(sys.argv[1]), str(number % 10) * 100_000)\n"
    )
    for delay in (0.0, 0.013, 0.031):
        before = path.stat().st_ino
        with subprocess.Popen([sys.executable, "-c", code, str(path)]) as writer:
            while path.stat().st_ino == before:
                assert writer.poll() is None
            time.sleep(delay)
            writer.send_signal(signal.SIGKILL)
        text = path.read_text()
        assert text == text[0] * 100_000


def test_only_one_creates(path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda number: create_exclusive(path, str(number)), range(32)))
    assert sum(made) == 1
    assert path.read_text() == str(made.index(True))
    assert list(path.parent.iterdir()) == [path]


def test_a_link_whose_reply_was_lost_is_ours(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = os.link

    def retransmitted(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", retransmitted)
    assert create_exclusive(path, "mine")
    assert not create_exclusive(path, "other")
    assert path.read_text() == "mine"


def test_an_error_keeps_its_cause(path: Path) -> None:
    with pytest.raises(StorageError, match=rf"cannot stage {path}: odd; .*") as caught, storage(path, "stage"):
        raise OSError("odd")
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(StorageError, match=f"permissions of {path.parent.parent}, then"), storage(path.parent.parent):
        raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device; check the free space"),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]), "No space left on device; check the"),
        (
            OSError("[Errno 28] Can't write (time = Sat\n, errno = 28, error = 'full')"),
            "No space left on device; check",
        ),
        (OSError("I/O error: No space (os error 28)"), "No space left on device; check the free space"),
        (OSError("two\nlines"), "two lines; check the free space"),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied; check the permissions of "),
        (OSError(errno.ENOTDIR, "Not a directory"), "Not a directory; check the path, then run the same command again"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), "File name too long; give a name of at most 200 bytes"),
    ],
)
def test_what_the_system_says_is_one_line_with_what_to_do(path: Path, error: OSError, reason: str) -> None:
    with pytest.raises(StorageError) as caught, storage(path):
        raise error
    text = str(caught.value)
    assert text.startswith("cannot write ")
    assert reason in text
    assert "\n" not in text


def test_what_is_not_complete_is_told_by_its_final_name(path: Path) -> None:
    with (
        pytest.raises(StorageError, match=f"^cannot write {path}: odd; "),
        atomic_path(path) as temporary,
        storage(temporary),
    ):
        raise OSError("odd")


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_a_pipe_is_neither_waited_for_nor_replaced(path: Path, kind: str) -> None:
    path.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to(os.devnull)
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(path))  # the whole path may be too long for a socket
    before = path.lstat().st_ino
    for use in (read_json, read_json_lines, sha256, lambda path: write_atomic(path, "x"), append_json_line):
        with pytest.raises(
            StorageError, match=rf"{path}: it is a pipe, a socket or a device, where a file is expected"
        ):
            use(path, *({},) * (use is append_json_line))
    assert path.lstat().st_ino == before


def test_a_folder_is_there_as_a_whole_or_not_at_all(path: Path) -> None:
    with pytest.raises(RuntimeError, match="half"), atomic_folder(path) as temporary:
        (temporary / "a").write_text("1")
        raise RuntimeError("half way")
    assert list(path.parent.iterdir()) == []
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("1")
    left = path.with_name(f".{path.name}.1-01234567.tmp")
    left.mkdir()
    (left / "a").touch()
    remove_leftovers(path)
    assert list(path.parent.iterdir()) == [path]
    assert (path / "a").read_text() == "1"


def test_an_error_of_another_file_is_said_of_that_file(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "raw" / "record.npy"
    said = rf"cannot write {path}: {other}: No such file or directory; check the path, then run"
    with pytest.raises(StorageError, match=said), atomic_path(path) as temporary:
        temporary.write_bytes(other.read_bytes())
    with pytest.raises(StorageError, match=f"cannot write {path}: No such file"), atomic_path(path) as temporary:
        temporary.read_bytes()


def test_what_cannot_be_read_is_not_said_of_its_copy(path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    said = pytest.raises(StorageError, match=f"cannot read {tmp_path / 'source'}: ")
    with said, storage(path), (tmp_path / "source").open("wb") as unreadable, path.open("wb") as target:
        copy_blocks(unreadable, target, lambda: None)


def test_a_digest_is_that_of_the_whole_file(path: Path) -> None:
    content = os.urandom((1 << 20) + 17)
    write_atomic(path, content)
    assert sha256(path) == hashlib.sha256(content).hexdigest()
    with pytest.raises(StorageError, match=r"cannot read .*none: No such file"):
        sha256(path.with_name("none"))


def test_equal_values_are_equal_bytes() -> None:
    assert to_json({"b": [1.5, None], "a": "ü"}) == to_json({"a": "ü", "b": [1.5, None]}) == '{"a":"ü","b":[1.5,null]}'


def test_json_is_read_or_absent_or_named(path: Path) -> None:
    assert read_json(path) is None
    write_atomic(path, "[1]")
    assert read_json(path) == [1]
    for damaged in ("[1", "", b"\xff\xfe"):
        write_atomic(path, damaged)
        with pytest.raises(StorageError, match=rf"{path} is not JSON \(.*\); it was damaged"):
            read_json(path)
    with pytest.raises(StorageError, match=f"cannot read {path.parent}: Is a directory"):
        read_json(path.parent)


def test_lines_are_appended(path: Path) -> None:
    assert read_json_lines(path) == []
    path.parent.mkdir()
    for row in ({"step": 1}, {"step": 2, "text": "two\nlines, ü"}):
        append_json_line(path, row, durable=row["step"] == 2)
    assert read_json_lines(path) == [{"step": 1}, {"step": 2, "text": "two\nlines, ü"}]
    assert path.read_bytes().count(b"\n") == 2
    with pytest.raises(StorageError, match=f"cannot read {path.parent}: Is a directory"):
        read_json_lines(path.parent)
    with pytest.raises(StorageError, match=r"cannot write .*none/file: No such file"):
        append_json_line(path.parent / "none" / "file", {})


@pytest.mark.parametrize("cut", range(1, 25))
def test_a_line_that_a_crash_cut_swallows_nothing(cut: int, path: Path) -> None:
    """Wherever the second of two lines is cut, the first stays and the next one is whole."""
    first, second, third = {"step": 1}, {"step": 2, "text": "grün"}, {"step": 3}
    path.parent.mkdir()
    append_json_line(path, first)
    whole = len(path.read_bytes())
    append_json_line(path, second)
    length = len(path.read_bytes()) - whole
    os.truncate(path, whole + min(cut, length))
    append_json_line(path, third)
    rows = read_json_lines(path)
    assert rows[0] == first
    assert rows[-1] == third
    assert rows[1:-1] == ([second] if cut >= length - 1 else [])


def test_lines_that_are_no_object_are_left_out(path: Path) -> None:
    write_atomic(path, b'1\n\n[2]\n{"a":\n\xff\n{"a":1}\n')
    assert read_json_lines(path) == [{"a": 1}]


def test_several_writers_do_not_mix_their_lines(path: Path) -> None:
    path.parent.mkdir()
    code = (
        "import sys; from pathlib import Path; from contrails.files import append_json_line\n"
        "for number in range(200): append_json_line(Path(sys.argv[1]), [sys.argv[2], number, 'x' * 500])\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(name)]) for name in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    found: dict[str, list[int]] = {}
    for name, number, _ in parsed(path):
        found.setdefault(name, []).append(number)
    assert found == {str(name): list(range(200)) for name in range(3)}


def parsed(path: Path) -> Iterator[Any]:
    # a writer can see another one's line half way and close it: an empty line is no loss
    return (json.loads(line) for line in path.read_text().splitlines() if line)


def test_leftovers_of_a_file_and_of_no_other(tmp_path: Path) -> None:
    mine, others = tmp_path / ".x.12-0123abcd.tmp", tmp_path / ".x.tif.12-0123abcd.tmp"
    for path in (mine, others):
        path.touch()
    files.remove_leftovers(tmp_path / "x")
    assert list(tmp_path.iterdir()) == [others]
