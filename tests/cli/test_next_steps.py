"""What messages tell a user to type: each command is one that the command line takes."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from conftest import MakeRun, freeze

import contrails
from contrails.cli.main import cli
from contrails.cluster.ends import write_end
from contrails.cluster.outcomes import OUTCOMES, Cause
from contrails.cluster.queue.freeze import freeze_code
from contrails.cluster.submit.create import choose_folds
from contrails.dataset.store import open_dataset
from contrails.errors import DataError, RecipeError
from contrails.files import to_json, write_atomic

from typed_commands import parse

_PACKAGE = Path(contrails.__file__).parent
_COMMAND = re.compile(r"`contrails((?: [^`]*)?)`")
_FILLED_IN = "1"
"""Stands for what a message fills in: a number is a name and a path as well."""


def _texts(tree: ast.AST) -> Iterator[str]:
    """Yield the strings of a module without its docstrings, with `_FILLED_IN` for what they fill in."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue  # a docstring: it tells what a command is, and asks for nothing
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else _FILLED_IN for part in node.values)  # type: ignore[misc]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield re.sub(r"{\w+}", _FILLED_IN, node.value)
        else:
            yield from _texts(node)


def _commands() -> Iterator[tuple[str, str]]:
    for path in sorted(_PACKAGE.rglob("*.py")):
        for text in _texts(ast.parse(path.read_text())):
            for match in _COMMAND.finditer(text):
                yield str(path.relative_to(_PACKAGE)), match[1]


@pytest.mark.parametrize(("where", "words"), sorted(set(_commands())))
def test_a_command_in_a_message_works_when_typed(where: str, words: str) -> None:
    try:
        parse(shlex.split(words))
    except click.UsageError as error:
        pytest.fail(f"{where}: `contrails{words}`: {error.format_message()}")


def test_a_command_without_its_run_does_not() -> None:
    with pytest.raises(click.UsageError, match="Missing parameter: run_name"):
        parse(["resume"])


def test_a_mistyped_site_changes_nothing_of_a_run(make_run: MakeRun) -> None:
    run = make_run()
    freeze_code(run)
    before = run.toml.read_bytes()
    with pytest.raises(RecipeError, match="--site nowhere"):
        cli(["resume", str(run.path), "--code", "current", "--site", "nowhere"], standalone_mode=False)
    assert run.toml.read_bytes() == before
    assert [path.name for path in run.path.iterdir() if path.name.startswith("code")] == ["code"]


@pytest.mark.parametrize("cause", OUTCOMES)
@pytest.mark.parametrize("name", ["first", "a run of mine"])
def test_what_status_asks_for_is_typed(
    cause: Cause, name: str, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(name)
    monkeypatch.setenv("CONTRAILS_RUNS", str(run.path.parent))
    freeze(run)
    attempt = run.fold("0").attempt(1)
    write_atomic(attempt.state, to_json({"status": "failed", "reason": "it failed"}))
    write_end(run.fold("0"), attempt, cause)
    cli(["status", name], standalone_mode=False)
    commands = [shlex.split(words) for words in _COMMAND.findall(capsys.readouterr().out)]
    assert ["resume", name] in [words[:2] for words in commands]
    # so that nothing is left to train when the command goes on
    write_atomic(run.fold("0").done, to_json({"attempt": 1, "step": 12, "epoch": 3, "best_dice": 0.5}))
    for words in commands:
        cli(words, standalone_mode=False)
    assert f"{name} fold 0: done" in capsys.readouterr().out


def test_a_single_fold_is_no_file_list(make_run: MakeRun) -> None:
    recipe = make_run().read_config().recipe
    with pytest.raises(RecipeError, match=r"--folds 1: .* give --folds 3, or --fold 0 for one of them"):
        choose_folds(recipe, 1, None)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("test.h5", "`contrails prepare RAW test.h5 --split test`"),
        ("validation.h5", "`contrails prepare RAW validation.h5 --split validation`"),
        ("train.h5", "`contrails prepare RAW train.h5`"),
        ("X.csv", "that is the name of a file list: give the dataset file"),
    ],
)
def test_a_missing_dataset_is_made_of_its_split(name: str, advice: str) -> None:
    with pytest.raises(DataError, match=advice):
        open_dataset(Path(name))


def test_logs_say_why_there_are_none(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    run.fold("0").path.mkdir(parents=True)
    cli(["logs", str(run.path)], standalone_mode=False)
    assert "fold 0 has written nothing yet; look at it with `contrails status" in capsys.readouterr().err
    write_atomic(run.fold("0").attempt(1).state, to_json({"status": "done"}))
    cli(["logs", str(run.path)], standalone_mode=False)
    assert "fold 0 has no log: it was trained in the foreground" in capsys.readouterr().err
