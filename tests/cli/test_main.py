"""The command line as a whole: starts at once, imports little, explains itself, returns the documented codes."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import pytest

from contrails.cli.main import _COMMANDS, _SECTIONS, cli

from pages import PAGES, shell_lines

HEAVY = {"torch", "wandb", "kornia", "matplotlib", "pandas", "segmentation_models_pytorch"}


def contrails(*arguments: str, cwd: Path | None = None, runs: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) | ({"CONTRAILS_RUNS": str(runs)} if runs else {})
    command = [sys.executable, "-m", "contrails", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def commands(group: click.Group, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        found += commands(command, (*prefix, name)) if isinstance(command, click.Group) else [(*prefix, name)]
    return found


_OF_RUNS = (
    *("status", "logs", "cancel", "resume", "continue", "aggregate", "predict", "evaluate", "runs", "note", "compare"),
    *("usage", "report", "sync"),
)
_OF_SITES = ("aggregate", "continue", "doctor", "drill", "prepare", "resume", "submit", "train")
_OF_KEYS = (["submit"], ["train"], ["continue"], ["recipe", "show"])


def groups(group: click.Group) -> list[tuple[str, ...]]:
    return sorted({path[:length] for path in commands(group) for length in range(len(path))})


@pytest.mark.parametrize("path", commands(cli), ids=" ".join)
def test_the_example_calls_the_command(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    cli([*path, "--help"], standalone_mode=False)
    text = capsys.readouterr().out
    assert "Example:" in text
    assert f"contrails {' '.join(path)}" in text.split("Example:")[1]


@pytest.mark.parametrize("arguments", [["--help"], ["submit", "--help"], ["status"], ["sites"], ["train", "--help"]])
def test_login_node_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from contrails.cli.main import cli; "
        "cli(sys.argv[1:], standalone_mode=False); "
        f"found = {HEAVY!r} & set(sys.modules); sys.exit(', '.join(sorted(found)) or 0)"
    )
    environment = dict(os.environ) | {"CONTRAILS_RUNS": str(tmp_path)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", _COMMANDS)
def test_the_list_of_commands_says_what_their_help_says(name: str) -> None:
    _, text = _COMMANDS[name]
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.get_short_help_str(1000) == text


@pytest.mark.parametrize("path", groups(cli), ids=" ".join)
def test_a_list_of_commands_has_whole_sentences(path: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "contrails", *path, "--help"]
    environment = dict(os.environ) | {"COLUMNS": "80"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    # of the main list each section has a heading of its own
    rows = done.stdout.partition("Show this message and exit.\n")[2].splitlines()
    rows = [row for row in rows if row and not row.endswith(":")]
    assert rows
    for row in rows:
        assert row.startswith("  ")
        assert not row.startswith("   ")  # the rest of a sentence
        assert row.endswith(".")
        assert "..." not in row


def test_the_main_list_has_every_command_in_sections() -> None:
    assert [*_SECTIONS] == ["Data", "Train", "Watch", "Results", "Site"]
    for heading, commands in _SECTIONS.items():
        assert {module.split(".")[2] for module, _ in commands.values()} == {heading.lower()}


def imported(arguments: list[str], runs: Path) -> set[str]:
    """Return the modules that a command line imports."""
    code = "import sys; from contrails.cli.main import main\ntry: main()\nfinally: print(*sys.modules, file=sys.stderr)"
    environment = dict(os.environ) | {"CONTRAILS_RUNS": str(runs)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_help_imports_no_command(tmp_path: Path) -> None:
    found = imported(["--help"], tmp_path)
    assert not {"pydantic", "rich"} & found
    assert not {module for module, _ in _COMMANDS.values()} & found


def test_status_of_a_run_here_reads_no_recipe(tmp_path: Path) -> None:
    (tmp_path / "first/folds/0").mkdir(parents=True)
    (tmp_path / "first/run.toml").write_text("[site]\nname = 'local'\nscheduler = 'local'\n")
    (tmp_path / "first/then.json").write_text('{"command": ["aggregate", "first"], "folds": ["0"]}')
    assert not {"pydantic", "contrails.recipe.recipe", "contrails.cluster.schedulers.sites", "torch"} & imported(
        ["status", "first"], tmp_path
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["contrails", "su"], {"submit", "submission"}),
        (["contrails", "data", ""], {"audit", "info", "join", "verify"}),
        (["contrails", "status", "--w"], {"--watch"}),
        (["contrails", "nothing", "--w"], set()),
        (["contrails", "status", ""], {"first", "second"}),
        *((["contrails", name, "f"], {"first"}) for name in _OF_RUNS),
        (["contrails", "compare", "first", "s"], {"second"}),
        (["contrails", "submit", "--after", "s"], {"second"}),
        (["contrails", "runs", "--baseline", "s"], {"second"}),
        *((["contrails", name, "--site", "m"], {"mine"}) for name in _OF_SITES),
        (["contrails", "submit", "--site", ""], {"local", "mine", "pbs", "slurm"}),
        *((["contrails", *name, "-o", "train.lr"], {"train.lr="}) for name in _OF_KEYS),
        (["contrails", "train", "-o", "train.warmup"], {"train.warmup_epochs=", "train.warmup_steps="}),
        (["contrails", "predict", "first", "da"], {"da"}),  # the shell completes a file
        (["contrails", "submit", "jo"], {"jo"}),
        (["contrails", "status", "./"], {"./"}),  # or a folder
    ],
)
def test_a_shell_completes_what_is_typed(words: list[str], expected: set[str], tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.toml").touch()
    (tmp_path / "jobs/sites").mkdir(parents=True)
    (tmp_path / "jobs/sites/mine.toml").write_text("not TOML")
    done = completed(words, tmp_path)
    assert {line.partition(",")[2] for line in done.stdout.splitlines() if line} == expected
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["file", "gone"])
def test_where_there_is_nothing_to_complete_nothing_is_said(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = completed(["contrails", "status", "f"], tmp_path, CONTRAILS_RUNS=str(tmp_path / name))
    assert (done.stdout.strip(), done.stderr) == ("", "")


@pytest.mark.parametrize("words", [["contrails", "status", "f"], ["contrails", "submit", "--site", "m"]])
def test_completion_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    code = f"import sys\nfrom contrails.cli.main import main\ntry: main()\nfinally: print({HEAVY!r} & set(sys.modules))"
    done = completed(words, tmp_path, [sys.executable, "-c", code])
    assert done.stdout.splitlines()[-1] == "set()"


def completed(
    words: list[str], cwd: Path, command: Sequence[str] = (sys.executable, "-m", "contrails"), **more: str
) -> subprocess.CompletedProcess[str]:
    """Complete the last of the words as bash does."""
    environment = (
        dict(os.environ)
        | {
            "CONTRAILS_RUNS": str(cwd / "runs"),
            "_CONTRAILS_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
        | more
    )
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def test_an_unknown_command_names_the_nearest() -> None:
    done = contrails("submitt")
    assert done.returncode == 2
    assert "did you mean 'submit'?" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["submit"], 2, "expected jobs/default.toml in"),
        (["submit", "nothing.toml"], 3, "expected a recipe at nothing.toml, found no such file"),
        (["status", "nothing"], 5, "expected a run called 'nothing'"),
        (["data", "info", "nothing.h5"], 4, "expected a dataset file at nothing.h5"),
        (["submit", "--folds", "5", "--fold", "1", "x.toml"], 2, "not both"),
        (["prepare", "nowhere", "x.h5"], 4, "found no such folder"),
        (["prepare", "", "x.h5"], 2, "expected a path, found an empty text"),
        (["status", "x" * 300], 7, "File name too long; give a name of at most 200 bytes"),
        (["report", f"{'x' * 250}/" * 20], 7, "File name too long; give a name of at most 200 bytes"),
    ],
)
def test_errors_have_their_code_and_no_traceback(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    done = contrails(*arguments, cwd=tmp_path, runs=tmp_path / "runs")
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (["status", "nothing"], 5, "run"),
        (["data", "info", "nothing.h5"], 4, "data"),
        (["recipe", "show", "nothing.toml"], 3, "recipe"),
        (["status", "--recent", "few"], 2, "usage"),
        (["statu"], 2, "usage"),
    ],
)
def test_with_json_an_error_is_a_line_of_json(arguments: list[str], exit_code: int, code: str, tmp_path: Path) -> None:
    text = contrails(*arguments, cwd=tmp_path, runs=tmp_path / "runs")
    done = contrails(*arguments, "--json", cwd=tmp_path, runs=tmp_path / "runs")
    assert (done.returncode, done.stdout) == (exit_code, "")
    (line,) = done.stderr.splitlines()
    found = json.loads(line)["error"]
    assert (found["code"], found["exit_code"]) == (code, exit_code)
    assert found["message"] in text.stderr


def test_ctrl_c_while_a_command_is_imported_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n")
    environment = dict(os.environ) | {"PYTHONPATH": str(tmp_path)}
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # as a shell in a terminal starts commands
    command = [sys.executable, "-m", "contrails", "--help"]
    done = subprocess.run(command, capture_output=True, env=environment, preexec_fn=heard, check=False)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_ctrl_c_and_a_closed_pipe_are_no_tracebacks(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    shown = subprocess.run(
        f"{sys.executable} -m contrails recipe schema --json | head -c 10", shell=True, capture_output=True, check=False
    )
    assert shown.stderr == b""
    code = "import contrails.cli.main as m; m.cli.callback = None; m._COMMANDS['status'] = 'interrupting', ''; m.main()"
    (tmp_path / "interrupting.py").write_text(
        "import click\n@click.command()\ndef status():\n    raise KeyboardInterrupt\n"
    )
    environment = dict(os.environ) | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code, "status"], capture_output=True, env=environment, check=False)
    assert done.returncode == 130
    assert b"Traceback" not in done.stderr


_FILE = re.compile(r"(?:data|filelists)/[\w/-]+\.(?:h5|csv)\b")
STAND_INS = {
    "filelists/from-a-colleague.csv",
    "data/demo/raw/sample_submission.csv",
    "data/clouds/sample_submission.csv",
}
"""Somebody else's, or made by `contrails demo`."""


def test_every_file_of_an_example_is_made_by_an_example() -> None:
    helps = [(cli.get_command(click.Context(cli), path[0]), path) for path in commands(cli)]
    texts = [(cli.help or "").split("Example:")[1]]
    for command, path in helps:
        for name in path[1:]:
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(command), name)
        assert command is not None
        texts.append((command.help or "").split("Example:")[1])
    found: set[str] = set()
    for text in ("\n".join(texts), *("\n".join(shell_lines(page)) for page in PAGES)):
        lines = [line.split("#")[0].split() for line in text.splitlines() if line.strip().startswith("contrails ")]
        made = {word for words in lines for word, before in zip(words[1:], words, strict=False) if before == "-o"}
        made |= {words[3] for words in lines if words[1] == "prepare"}
        used = {path for words in lines for path in _FILE.findall(" ".join(words))}
        assert used - made == STAND_INS & used
        found |= used
    assert {"data/demo/train.h5", "data/goes/train.h5", "filelists/clouds.csv"} <= found
