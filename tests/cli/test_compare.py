"""`contrails compare`: two runs side by side."""

import json
import shutil
from pathlib import Path

import click
import pytest

from contrails.cli.main import cli
from contrails.runs.folder import Run


def compared(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    cli(["compare", *arguments], standalone_mode=False)
    return capsys.readouterr().out


def test_side_by_side(
    aggregated: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Run(tmp_path / "other")
    shutil.copytree(aggregated.path, other.path)
    other.toml.write_text(other.toml.read_text().replace("lr = 0.003", "lr = 0.5"))
    both = (str(aggregated.path), str(other.path))
    text = compared(capsys, *both)
    assert "train.lr" in text
    assert "the difference may be chance" in text
    assert "validation Dice" in text
    found = json.loads(compared(capsys, str(aggregated.path), str(other.path), "--json"))
    assert found["recipe"] == {"train.lr": [0.003, 0.5]}
    assert found["paired"]["num_records"] == 12
    assert len(found["curves"]["val/dice"][0]) == 3
    with pytest.raises(click.UsageError, match=r"expected two runs, found one: .* are the same"):
        compared(capsys, str(other.path), f"{other.path}/")
    figures = json.loads((other.aggregate("default") / "ensemble.json").read_text())
    figures["scores"] = {"dice_fitted_threshold": 0.3125}  # as of one fold
    (other.aggregate("default") / "ensemble.json").write_text(json.dumps(figures))
    monkeypatch.setenv("COLUMNS", "200")
    (line,) = [line for line in compared(capsys, *both).splitlines() if "one fold's own validation" in line]
    assert line.split()[-1] == "0.3125"
    shutil.rmtree(other.aggregate("default"))
    text = compared(capsys, str(aggregated.path), str(other.path))
    assert "no paired comparison: other has no aggregation" in text
