"""The standard streams of the command line: closed, full, without a reader, in an encoding that lacks a character."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import MakeRun

WRITTEN = b"error: cannot write to the standard output: "


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell, in which `contrails` is the command."""
    line = line.replace("contrails", f"{sys.executable} -m contrails")
    variables = dict(os.environ) | {"CONTRAILS_RUNS": str(folder)} | environment
    return subprocess.run(line, shell=True, cwd=folder, env=variables, capture_output=True, check=False)


# written by click, by rich line by line, and by rich as a table
@pytest.mark.parametrize("command", ["--help", "recipe schema", "status"])
@pytest.mark.parametrize(("target", "reason"), [("> /dev/full", b"No space left on device"), (">&-", b"it is closed")])
def test_output_that_cannot_be_written_is_an_error(
    make_run: MakeRun, tmp_path: Path, command: str, target: str, reason: bytes
) -> None:
    if target == "> /dev/full" and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    make_run()
    done = shell(f"contrails {command} {target}", tmp_path)
    assert done.returncode == 7, done.stderr
    assert done.stderr.startswith(WRITTEN + reason)
    assert done.stderr.count(b"\n") == 1


def test_what_a_command_does_is_done_though_nobody_can_read_of_it(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    done = shell("contrails note run 'a remark' >&- 2>&-", tmp_path)
    assert done.returncode == 7
    assert json.loads(run.notes.read_text())["text"] == "a remark"


@pytest.mark.parametrize("target", ["2> /dev/full", "2>&-"])
def test_messages_that_cannot_be_written_end_nothing(make_run: MakeRun, tmp_path: Path, target: str) -> None:
    make_run()
    assert b"fold" in shell(f"contrails status {target}", tmp_path).stdout
    assert shell(f"contrails status none {target}", tmp_path).returncode == 5
    gone = shell("{ (contrails status none 2>&1; echo $? >&3) | true; } 3>&1", tmp_path)
    assert gone.stdout == b"5\n"


def test_no_file_gets_the_number_of_a_closed_stream(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    before = run.toml.read_bytes()
    for target in ("<&-", "<&- >&-", "<&- >&- 2>&-"):
        shell(f"contrails status {target}", tmp_path)
        shell(f"contrails note run again {target}", tmp_path)
    assert run.toml.read_bytes() == before
    assert [json.loads(line)["text"] for line in run.notes.read_text().splitlines()] == ["again"] * 3


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
def test_names_that_an_encoding_lacks_are_written_all_the_same(
    make_run: MakeRun, tmp_path: Path, environment: dict[str, str]
) -> None:
    run = make_run("Läufe")
    for command, code in (("status", 0), ("runs", 0), ("usage", 0), ("status Läuse", 5), ("logs Läufe", 5)):
        done = shell(f"contrails {command}", tmp_path, **environment)
        assert done.returncode == code, done.stderr
        assert b"Traceback" not in done.stderr
    done = shell("contrails data info ünbekannt.h5", tmp_path, **environment)
    assert done.returncode == 4, done.stderr
    assert run.toml.exists()


def test_names_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"b\xffd")
    folder.mkdir()
    message = rb"expected names in UTF-8, found b'\S*b\\xffd'; rename that file or folder"
    for done in (
        shell("contrails status b$(printf '\\377')d", tmp_path),
        shell("contrails status", tmp_path, CONTRAILS_RUNS=str(folder)),
        shell("contrails status", folder, CONTRAILS_RUNS=str(tmp_path)),
    ):
        assert done.returncode == 2
        assert len(re.findall(message, done.stderr)) == 1, done.stderr


def test_a_folder_that_was_removed_is_named(tmp_path: Path) -> None:
    done = shell("mkdir gone && cd gone && rmdir ../gone && contrails status", tmp_path)
    assert done.returncode == 7
    assert done.stderr.startswith(
        b"error: the current folder cannot be found (No such file or directory): it was removed"
    )
    assert done.stderr.count(b"\n") == 1
