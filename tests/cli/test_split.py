"""`contrails split` on real files: makes, repeats, refuses and checks file lists."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from contrails.cli.main import cli
from contrails.errors import DataError
from contrails.folds.filelists import read_filelist

from raw_records import write_metadata, write_record


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset file of 12 records, four tiles of three records an hour apart."""
    root = tmp_path_factory.mktemp("tiles")
    for index in range(12):
        write_record(root, "train", f"{1000 + index}", size=16, seed=index, positive=index % 2 == 0)
    entries = [
        {"record_id": f"{1000 + index}", "tile": f"tile{index // 3}", "timestamp": 3600.0 * index}
        for index in range(12)
    ]
    write_metadata(root, "train", entries)
    run("prepare", root, root / "tiles.h5")
    return root / "tiles.h5"


def run(*arguments: str | Path) -> None:
    cli([str(argument) for argument in arguments], standalone_mode=False)


def test_makes_a_list_and_says_how(tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lists" / "two.csv"
    run("split", tiles, "--folds", "2", "-o", out, "--seed", "3")
    shown = capsys.readouterr()
    assert shown.err == f"{out}: written\n"
    assert [line.split() for line in shown.out.splitlines()[3:5]] == [["0", "6", "3", "2"], ["1", "6", "3", "2"]]
    first = out.read_text().splitlines()[0]
    assert first == f"# contrails split {tiles} --folds=2 --hold-out=0 --window-hours=24 --seed=3 -o {out}"
    filelist = read_filelist(out)
    assert sorted(filelist.record_ids) == [f"{1000 + index}" for index in range(12)]
    assert all(len({filelist.folds[row] for row in range(start, start + 3)}) == 1 for start in range(0, 12, 3))


def test_the_command_in_the_list_makes_it_again(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.csv"
    run("split", tiles, "--folds", "3", "-o", out, "--hold-out", "0.25", "--seed", "1", "--json")
    made = out.read_text()
    counts = json.loads(capsys.readouterr().out)
    assert [row["fold"] for row in counts["folds"]] == [0, 1, 2, -1]
    assert [row["records"] for row in counts["folds"]] == [3, 3, 3, 3]
    assert counts["leaks"] == []
    arguments = made.splitlines()[0].removeprefix("# contrails ").split()
    run(*arguments)
    assert "an equal file list exists already" in capsys.readouterr().err
    out.unlink()
    run(*arguments)
    assert out.read_text() == made
    with pytest.raises(DataError, match=r"x.csv exists and is another file list"):
        run("split", tiles, "--folds", "2", "-o", out)
    assert out.read_text() == made


def test_check_names_what_leaks(tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.csv", tmp_path / "bad.csv"
    run("split", tiles, "--folds", "2", "-o", good)
    run("split", tiles, "--check", good)
    assert f"{good}: no leaks" in capsys.readouterr().err
    rows = "".join(f"{1000 + index},,{index % 2}\n" for index in range(12))
    bad.write_text(f"record_id,group,fold\n{rows}")
    with pytest.raises(DataError) as caught:
        run("split", tiles, "--check", bad, "--json")
    assert caught.value.exit_code == 4
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{bad} leaks between folds:"
    assert len(lines) == 6
    assert lines[1].endswith("is spread over folds: 1000 in fold 0, 1001 in fold 1")
    assert lines[-1] == f"make a file list without leaks: `contrails split {tiles} -o NEW.csv`"
    assert json.loads(capsys.readouterr().out)["leaks"] == lines[1:-1]
    # a window below the hour between the records: each is a group of its own
    run("split", tiles, "--check", bad, "--window-hours", "0.9")


def test_check_names_records_that_differ(tiles: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("record_id,group,fold\n1000,g,0\n7,h,1\n")
    with pytest.raises(DataError, match=r"(?s)lacks: 1, such as 7\n.*lacks records: 11, such as 1001, 1002, 1003"):
        run("split", tiles, "--check", path)


def test_unlabelled_records_and_folds_without_positives_are_told(
    tiles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "part.h5"
    shutil.copyfile(tiles, data)
    with h5py.File(data, "r+") as file:
        file["annotators"][:2] = 0
        file["votes"][2:10] = 0
    run("split", data, "--folds", "2", "-o", tmp_path / "x.csv")
    shown = capsys.readouterr().err
    assert "warning: 2 records have no label: no fold trains on them" in shown
    assert "warning: fold 1 validates on no positive record" in shown
    assert read_filelist(tmp_path / "x.csv").held_out() == ("1000", "1001")
    run("split", data, "--check", tmp_path / "x.csv")
    with h5py.File(data, "r+") as file:
        file["votes"][:] = 0
    with pytest.raises(DataError, match=r"found none among 12 records \(10 of them labelled\)"):
        run("split", data, "--folds", "2", "-o", tmp_path / "y.csv")
    assert not (tmp_path / "y.csv").exists()


@pytest.mark.parametrize("options", [[], ["-o", "x.csv", "--check", "x.csv"]])
def test_a_list_is_either_made_or_checked(
    options: list[str], tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli(["split", str(tiles), *options])
    assert caught.value.code == 2
    assert "give either -o FILE to write a file list, or --check FILE" in capsys.readouterr().err


def test_unknown_places_are_told(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("split", tiny_data / "train.h5", "--folds", "2", "-o", tmp_path / "x.csv")
    assert "warning: location and time of 12 records are unknown" in capsys.readouterr().err


def test_real_records(real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six records without metadata, three of them positive."""
    run("prepare", real_data, tmp_path / "real.h5", "--workers", "1")
    run("split", tmp_path / "real.h5", "--folds", "3", "-o", tmp_path / "real.csv", "--json")
    folds = json.loads(capsys.readouterr().out.splitlines()[-1])["folds"]
    assert [(row["records"], row["positive"], row["groups"]) for row in folds] == [(2, 1, 2)] * 3
    assert np.unique(read_filelist(tmp_path / "real.csv").folds).tolist() == [0, 1, 2]
