"""`contrails data` as it is typed."""

from pathlib import Path

import pytest

from contrails.cli.main import cli
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
    assert "joining 2 shards: 12/12" in said.err
    assert out.read_bytes() == (tiny_data / "train.h5").read_bytes()
    data("join", str(out))
    assert "complete already: nothing to do" in capsys.readouterr().out


def test_join_without_shards_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected the shards of \S+/train.h5 beside it"):
        data("join", str(tmp_path / "train.h5"))
