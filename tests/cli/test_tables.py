"""Tables at 80 and 60 columns, with long names: every word is whole, what matters least is left out."""

import io
import json
import re
from collections.abc import Sequence

import pytest
from conftest import MakeRun
from rich.console import Console

from contrails.cli.main import cli
from contrails.cli.tables import Cell, Column, new_table
from contrails.files import to_json, write_atomic
from contrails.report.log import add_note
from contrails.runs.folder import Run

LONG = "convnextv2-tiny-512-soft-labels-ema-s0"
OTHER = "resnest26d-with-every-band-and-frame-s1"
PIECE = re.compile(r"(?:[^-_./=,;:\s─]|[-.,:](?=[0-9]))+")


def drawn(columns: Sequence[Column], rows: Sequence[Sequence[Cell] | None], width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(new_table(columns, rows, width))
    return out.getvalue()


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    cli(list(arguments), standalone_mode=False)
    return capsys.readouterr().out


@pytest.fixture
def two(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    first = make_run(LONG)
    second = make_run(OTHER, train={"lr": 1e-2, "epochs": 5, "ema_decay": 0.999}, augment={"dihedral": 0.5})
    monkeypatch.setenv("CONTRAILS_RUNS", str(first.path.parent))
    for index, run in enumerate((first, second)):
        made = {"created": f"2026-01-01T10:00:0{index}", "user": "somebody-of-the-institute"}
        write_atomic(run.provenance, to_json(made))
        write_atomic(run.fold("0").done, to_json({"attempt": 1, "step": 1, "epoch": 1, "best_dice": 0.5123}))
        write_atomic(run.aggregate("default") / "ensemble.json", to_json({"scores": {"dice": 0.6125 + index / 100}}))
        add_note(run, "drops after tracing, so nothing of it is taken over", 0.602)
    return [first, second]


@pytest.mark.parametrize("width", [80, 60])
@pytest.mark.parametrize(
    "arguments", [["runs"], ["compare", LONG, OTHER], ["status"], ["usage"], ["usage", LONG], ["sites"]], ids=" ".join
)
def test_no_word_is_broken(
    arguments: list[str],
    width: int,
    two: list[Run],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    known = set(PIECE.findall(said(capsys, *arguments)))
    monkeypatch.setenv("COLUMNS", str(width))
    text = said(capsys, *arguments)
    table = text.partition("no paired")[0].partition("for a job of one fold")[0]  # sentences are folded by the terminal
    assert max(map(len, table.splitlines())) <= width
    left_out = {*f"left out in {width} columns".split(), *PIECE.findall(text.partition("left out in")[2])}
    assert {piece for piece in PIECE.findall(text) if "…" not in piece} - left_out <= known


@pytest.mark.parametrize(("width", "there", "left_out"), [(80, "0.999,", "user"), (60, "0.6125", "created")])
def test_names_and_scores_stay_the_longest(
    width: int,
    there: str,
    left_out: str,
    two: list[Run],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = said(capsys, "runs")
    for name in (LONG, OTHER):
        assert name in text
    for score in ("0.6125", "0.6225", there):
        assert score in text
    assert left_out in text.partition(f"left out in {width} columns: ")[2]


def test_what_matters_least_is_left_out_first() -> None:
    columns = [Column("name", whole=True), Column("much", 1, right=True), Column("little", 2, right=True)]
    rows = [["a-name-of-one-word", "1234567890", "1234567890"]]
    for width, names in ((60, ["name", "much", "little"]), (40, ["name", "much"]), (26, ["name"])):
        text = drawn(columns, rows, width)
        assert text.split("\n")[1].split() == names
        assert "a-name-of-one-word" in text
    assert "left out in 26 columns:" in " ".join(text.split())


def test_what_fits_nowhere_is_folded_behind_separators_and_then_shortened() -> None:
    text = drawn([Column("where")], [["/a/rather/long/path/to/train.h5"], ["x" * 50]], 20)
    lines = [line.strip() for line in text.splitlines()]
    assert lines[3:5] == ["/a/rather/long/", "path/to/train.h5"]
    assert lines[5] == f"{'x' * 8}…{'x' * 8}"


def test_where_there_is_no_terminal_nothing_is_left_out(
    two: list[Run], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert "left out" not in said(capsys, "status")
    assert len(json.loads(said(capsys, "runs", "--json"))) == 2
