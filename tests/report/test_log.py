"""The experiment log: what runs differ in, how they are found, and that a damaged one hides no other."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from conftest import MakeRun

from contrails.cli.main import cli
from contrails.files import to_json, write_atomic
from contrails.report.log import add_note, read_log
from contrails.runs.folder import Run, all_runs

HEAVY = {"torch", "numpy", "pandas", "wandb", "matplotlib", "h5py"}


@pytest.fixture
def three(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Run]:
    """A baseline with two finished folds, one with another learning rate, and one that starts from that."""
    monkeypatch.setenv("COLUMNS", "400")  # so that no cell folds, whatever the length of paths
    monkeypatch.setenv("CONTRAILS_RUNS", str(tmp_path))
    first = make_run("first")
    second = make_run("zweiter Lauf ü", train={"lr": 1e-2, "epochs": 5})
    third = make_run("third", train={"lr": 1e-2, "epochs": 9}, init={"run": str(second.path)})
    for index, run in enumerate((first, second, third)):
        write_atomic(run.provenance, to_json({"created": f"2026-01-01T10:00:0{index + 1}", "user": "me"}))
        for fold in range(index + 1):
            done = {"attempt": 1, "step": 1, "epoch": 1, "best_dice": 0.5 + index / 10}
            write_atomic(run.fold(str(fold)).done, to_json(done))
    return [first, second, third]


def runs(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    cli(["runs", *arguments], standalone_mode=False)
    return capsys.readouterr().out


def names(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    return [row["run"] for row in csv.DictReader(io.StringIO(runs(capsys, "--csv", *arguments)))]


def test_what_differs_is_said_against_the_parent_or_the_oldest(three: list[Run]) -> None:
    first, second, third = sorted(read_log(all_runs()), key=lambda entry: entry.created)
    assert (first.compared_to, first.differs) == ("", {})
    assert (second.compared_to, second.differs) == ("first", {"train.epochs": 5, "train.lr": 1e-2})
    assert (third.compared_to, third.differs["train.epochs"]) == (second.name, 9)
    assert set(third.differs) == {"train.epochs", "init.run"}
    assert (third.folds_done, third.folds) == (3, 3)
    assert third.best_dice == pytest.approx(0.7)


def test_of_a_training_by_steps_its_epochs_are_not_shown(
    three: list[Run], make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("by steps", train={"steps": 7})
    write_atomic(run.provenance, to_json({"created": "2026-01-01T10:00:09", "user": "me"}))
    frozen = run.toml.read_text()
    write_atomic(run.toml, frozen.replace("steps = 7\n", "steps = 7\nepochs = 20\n"))  # as older versions wrote it
    for kept in (frozen, run.toml.read_text()):
        write_atomic(run.toml, kept)
        entry = next(entry for entry in read_log(all_runs()) if entry.name == run.name)
        assert entry.recipe["train.steps"] == 7
        assert "train.epochs" not in entry.recipe
        assert "train.epochs=, train.steps=7" in runs(capsys, "--csv", run.name)


def test_the_dice_of_one_fold_is_shown_as_what_it_is(three: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    for run, scores in (
        (three[0], {"dice_fitted_threshold": 0.3125}),
        (three[1], {"dice": 0.25, "dice_fitted_threshold": 1.0}),
    ):
        write_atomic(run.aggregate("default") / "ensemble.json", to_json({"scores": scores}))
    entries = {entry.name: entry for entry in read_log(three)}
    assert [(entries[run.name].dice, entries[run.name].one_fold) for run in three] == [
        (None, 0.3125),
        (0.25, None),
        (None, None),
    ]
    assert names(capsys, "one_fold>0.3") == ["first"]
    text = runs(capsys)
    assert "0.3125" in text
    assert "one fold" in " ".join(text.split())


def test_another_baseline(three: list[Run]) -> None:
    entry = next(entry for entry in read_log(three, three[2]) if entry.name == "first")
    assert entry.compared_to == "third"
    assert entry.differs["train.epochs"] == 3


def test_sorted_and_filtered(three: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = (run.name for run in three)
    assert names(capsys) == [first, second, third]
    assert names(capsys, "--sort", "best") == [third, second, first]
    assert names(capsys, "best>0.55", "train.epochs<9") == [second]
    assert names(capsys, "lr=0.01") == [second, third]
    assert names(capsys, "model.encoder=tu-test_resnet", "ü", "epochs=5") == [second]
    assert names(capsys, "leaderboard>0.1") == []


def test_what_is_no_experiment_is_neither_listed_nor_a_baseline(
    three: list[Run], make_run: MakeRun, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drilled = tmp_path / ".drill-0a1b2c" / "train.h5"
    drilled.parent.mkdir()
    shutil.copy(tiny_data / "train.h5", drilled)
    others = {
        "debug": make_run("first-debug", data={"limit": 8}),
        "overfit": make_run("first-overfit", data={"overfit": 3}),
        "drill": make_run("drill-0a1b2c-killed", data={"dataset": str(drilled)}),
    }
    for run in others.values():
        write_atomic(run.provenance, to_json({"created": "2025-12-31T10:00:00", "user": "me"}))  # the oldest
    assert set(names(capsys)) == {run.name for run in three}
    cli(["runs"], standalone_mode=False)
    assert "not listed: 3 of --debug, --overfit or drills; `contrails runs --all` lists all" in capsys.readouterr().err
    entries = {entry["name"]: entry for entry in json.loads(runs(capsys, "--all", "--json"))}
    assert {kind: entries[run.name]["kind"] for kind, run in others.items()} == {kind: kind for kind in others}
    assert entries["first"]["compared_to"] == ""
    assert {entries[run.name]["compared_to"] for run in others.values()} == {"first"}
    assert names(capsys, "--all", "kind=drill") == ["drill-0a1b2c-killed"]


def test_scores_of_a_classifier_say_that_they_count_records(
    three: list[Run], make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("says", model={"task": "classify"}, loss={"terms": ["bce"]})
    for fold, best in (("0", 0.25), ("1", 0.5)):
        write_atomic(run.fold(fold).done, to_json({"attempt": 1, "step": 1, "epoch": 1, "best_dice": best}))
    write_atomic(run.aggregate("default") / "ensemble.json", to_json({"scores": {"dice": 0.625}}))
    assert "0.3750 by record" in runs(capsys, "says")
    assert "0.6250" not in runs(capsys, "says")  # of an older aggregation, which counted pixels
    write_atomic(
        run.aggregate("default") / "ensemble.json", to_json({"scores": {"dice": 0.875, "scored_by": "record"}})
    )
    assert "0.8750 by record" in runs(capsys, "says")
    cli(["status"], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "says (Dice by record)" in shown
    assert shown.count("by record") == 1  # the others are none


def test_tables_for_people_and_machines(three: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    cli(["note", str(three[1].path), "--lb", "0.602", "drops | after [bold]tracing"], standalone_mode=False)
    add_note(three[1], "", 0.59)
    text = runs(capsys)
    assert "0.6020" in text
    assert "drops | after [bold]tracing" in text
    row = runs(capsys, "--markdown").splitlines()[3]
    assert "drops \\| after" in row
    entry = json.loads(runs(capsys, "--json"))[1]
    assert (entry["leaderboard"], entry["notes"]) == (0.602, ["drops | after [bold]tracing"])


def test_finished_runs_are_remembered_until_they_change(three: list[Run]) -> None:
    once = read_log(all_runs())
    assert read_log(all_runs()) == once
    add_note(three[0], "new", None)
    three[1].fold("0").done.unlink()
    again = {entry.name: entry for entry in read_log(all_runs())}
    assert again["first"].notes == ("new",)
    assert again[three[1].name].folds_done == 1


def test_damaged_and_older_runs_hide_no_other(three: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    three[0].toml.write_text("[recipe")
    three[1].toml.write_text("[recipe]\nforgotten = 1\n[recipe.train]\nlr = 0.5\n")
    three[1].journal.write_text('{"event": "intent", "fold": "0"}\n{"event": "subm')
    three[1].aggregate("default").mkdir(parents=True)
    (three[1].aggregate("default") / "ensemble.json").write_text('{"scores": {"dice_cross_fitted": 0.25}}')
    text = runs(capsys)
    assert "is not TOML" in text
    assert names(capsys, "forgotten=1", "lr=0.5", "dice=0.25") == [three[1].name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs", "--sort", "score"], "'score': .*Known: best, created"),
        (["runs", "learning>1"], "no such column or key"),
        (["runs", "dice>high"], "expected a number after >, found 'high'"),
        (["note", "first"], "nothing to note"),
        (["note", "first", "--lb", "nan"], "expected a finite number"),
    ],
)
def test_what_is_refused(three: list[Run], arguments: list[str], message: str) -> None:
    with pytest.raises(click.UsageError, match=message):
        cli(arguments, standalone_mode=False)


def test_nothing_heavy_is_imported(three: list[Run]) -> None:
    code = (
        "import sys; from contrails.cli.main import cli; cli(['runs'], standalone_mode=False); "
        f"found = {HEAVY!r} & set(sys.modules); sys.exit(', '.join(sorted(found)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert done.returncode == 0, done.stderr
    assert "first" in done.stdout


def test_nothing_to_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CONTRAILS_RUNS", str(tmp_path / "none"))
    assert "no runs to list" in runs(capsys)
