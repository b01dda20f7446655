"""`contrails data` as it is typed."""

import json
import re
from pathlib import Path

import click
import pytest

from contrails.cli.main import cli
from contrails.dataset.store import open_dataset
from contrails.errors import DataError


def data(*arguments: str) -> None:
    cli(["data", *arguments], standalone_mode=False)


def test_join_says_what_it_made_and_what_can_go(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "train.h5"
    for share in ("1/2", "2/2"):
        cli(["prepare", str(tiny_data / "raw"), str(out), "--shard", share], standalone_mode=False)
    capsys.readouterr()
    data("join", str(out))
    said = capsys.readouterr()
    assert f"{out}: 12 records of 2 shards" in said.out
    assert f"the shards can be removed: {tmp_path}/train-1of2.h5 to train-2of2.h5" in said.out
    assert out.read_bytes() == (tiny_data / "train.h5").read_bytes()
    data("join", str(out))
    assert "complete already: nothing to do" in capsys.readouterr().out


def test_join_without_shards_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected the shards of \S+/train.h5 beside it"):
        data("join", str(tmp_path / "train.h5"))


def test_info_draws_and_prints(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "p.png"
    data("info", str(tiny_data / "train.h5"), "--plot", str(picture), "--json")
    said = capsys.readouterr()
    assert json.loads(said.out)["positive_records"] == 6
    assert f"{picture}: 12 records" in said.err
    assert picture.read_bytes().startswith(b"\x89PNG")


def rows(text: str) -> dict[str, str]:
    cells = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in text.splitlines()]
    return {row[0]: row[1] for row in cells if len(row) == 2}


def test_info_is_for_people(
    tiny_data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tiny_data / "train.h5"
    data("info", str(path))
    said = capsys.readouterr()
    assert said.err == ""
    shown = rows(said.out)
    assert shown["size"] == f"{path.stat().st_size / 1e6:.1f} MB"
    assert shown["shape"] == "record 12, frame 1, band 3, y 32, x 32"
    assert shown["fingerprint"] == f"{open_dataset(path).fingerprint[:12]} (in full: --json)"
    assert shown["frames"] == "4"
    assert shown["places"] == "12"
    # six lines of 3 x 24 pixels, of which one annotator saw less
    assert shown["positive share"] == f"{100 * 6 * 3 * 24 / (12 * 32 * 32):.3g} % of the labelled pixels"
    data("info", str(tiny_data / "test.h5"))
    shown = rows(capsys.readouterr().out)
    assert {shown[key] for key in ("annotators", "positive records", "positive share")} == {"unlabelled"}


def test_info_as_json_has_everything(tiny_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data("info", str(tiny_data / "test.h5"), "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["fingerprint"] == open_dataset(tiny_data / "test.h5").fingerprint
    assert found["shape"] == {"record": 3, "frame": 1, "band": 3, "y": 32, "x": 32}
    assert (found["positive_records"], found["positive_share"]) == (None, None)
    for statistics in found["bands"].values():
        assert {value == round(value, 2) for value in statistics.values()} == {True}
        assert statistics["min"] < statistics["mean"] < statistics["max"]


@pytest.mark.parametrize(("name", "ending"), [("p.xyz", ".xyz"), ("p", ""), ("p.", "[.]?"), ("p.pgf", ".pgf")])
def test_an_unknown_picture_is_refused_before_any_work(tmp_path: Path, name: str, ending: str) -> None:
    message = rf"expected the file name of a picture, found the ending '{ending}'; known endings: .*jpg, pdf, png, "
    with pytest.raises(click.BadParameter, match=message) as caught:
        data("info", str(tmp_path / "nothing.h5"), "--plot", str(tmp_path / name))
    assert caught.value.param_hint == "--plot"
    assert list(tmp_path.iterdir()) == []


def test_a_picture_in_no_folder_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(
        click.BadParameter, match=r"'.*p.png': expected a folder .*/none, found none; make it"
    ) as caught:
        data("info", str(tmp_path / "nothing.h5"), "--plot", str(tmp_path / "none" / "p.png"))
    assert caught.value.param_hint == "--plot"
