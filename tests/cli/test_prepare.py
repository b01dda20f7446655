"""`contrails prepare` as it is typed: where a shard goes, and what is refused before any work."""

from pathlib import Path

import click
import pytest

from contrails.cli.main import cli
from contrails.data.store import open_dataset
from contrails.errors import DataError


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


@pytest.mark.parametrize("text", ["0/5", "6/5", "0/0", "x", "", "2", "2/", "/5", "2/5/6", "-1/5", "1.5/5", " 2/5"])
def test_a_share_that_is_none_is_refused(tiny_data: Path, tmp_path: Path, text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"'.*': expected I/N with I from 1 to N, such as 2/5") as caught:
        prepare(str(tiny_data / "raw"), str(tmp_path / "d.h5"), "--shard", text)
    assert caught.value.param_hint == "--shard"
    assert list(tmp_path.iterdir()) == []


def test_more_shards_than_records_are_refused(tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found 13 shards of 12 records"):
        prepare(str(tiny_data / "raw"), str(tmp_path / "d.h5"), "--shard", "1/13")
    assert list(tmp_path.iterdir()) == []
