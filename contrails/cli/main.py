"""The `contrails` command: finds its subcommands by name and turns the project's errors into exit codes.

The module of a subcommand is imported only when it runs, and imports torch, pandas and the like inside its functions.
So help, submission and status start at once on a login node.
"""

import json
import keyword
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from contrails import __version__
from contrails.cli.streams import ReaderGone, open_streams
from contrails.errors import ContrailsError, NodeError, StorageError, choices
from contrails.files import reason_of, refused

_SECTIONS = {
    "Data": {
        "demo": ("contrails.cli.data.demo", "Write a synthetic dataset to OUT."),
        "prepare": ("contrails.cli.data.prepare", "Pack raw data into the dataset file OUT."),
        "split": ("contrails.cli.data.split", "Assign the records of DATA to folds."),
        "data": ("contrails.cli.data.data", "Inspect dataset files, audit their labels, join their shards."),
    },
    "Train": {
        "recipe": ("contrails.cli.train.recipe", "Show recipes with their defaults, and the keys of a recipe."),
        "weights": ("contrails.cli.train.weights", "Download and list pretrained encoder weights."),
        "submit": ("contrails.cli.train.submit", "Train the folds of RECIPE in the background."),
        "train": ("contrails.cli.train.train", "Train one fold of RECIPE in the foreground."),
        "resume": ("contrails.cli.train.resume", "Continue the unfinished folds of RUN."),
        "continue": ("contrails.cli.train.continue_", "Start a new run from the weights of RUN."),
        "cancel": ("contrails.cli.train.cancel", "Cancel the unfinished folds of RUN."),
    },
    "Watch": {
        "status": ("contrails.cli.watch.status", "Show the folds of RUN, or of every run."),
        "logs": ("contrails.cli.watch.logs", "Print the log of a fold's newest attempt."),
        "sync": ("contrails.cli.watch.sync", "Send RUN to Weights & Biases."),
    },
    "Results": {
        "aggregate": ("contrails.cli.results.aggregate", "Merge the finished folds of RUN into an ensemble."),
        "predict": ("contrails.cli.results.predict", "Predict the masks of INPUT with ENSEMBLE into OUT."),
        "evaluate": ("contrails.cli.results.evaluate", "Score ENSEMBLE on the labelled records of DATA."),
        "submission": ("contrails.cli.results.submission", "Check submission files."),
        "report": ("contrails.cli.results.report", "Write a report of RUN as one HTML file."),
        "runs": ("contrails.cli.results.runs", "List all runs with scores, hours and changed recipe keys."),
        "compare": ("contrails.cli.results.compare", "Compare two runs: recipes, curves and scores."),
        "note": ("contrails.cli.results.note", "Add a note or a leaderboard score to RUN."),
    },
    "Site": {
        "sites": ("contrails.cli.site.sites", "List the sites where folds can run."),
        "doctor": ("contrails.cli.site.doctor", "Check the scheduler, the environment and the GPU of a site."),
        "drill": ("contrails.cli.site.drill", "Kill a small training repeatedly and compare its results."),
        "usage": ("contrails.cli.site.usage", "Show the hours used by RUN per fold, or by all runs."),
    },
}
"""The module and the short help of each command, by section, in the order of use.

The short help is the first sentence of the command's docstring; a test compares them. It is repeated here so that
`contrails --help` imports no command. The function in the module has the command's name.
"""

_COMMANDS = {name: entry for commands in _SECTIONS.values() for name, entry in commands.items()}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            if ctx.resilient_parsing:  # the shell asks for completions
                return None
            ctx.fail(f"no command '{cmd_name}'; {choices(cmd_name, _COMMANDS)}")
        module, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), cmd_name + "_" * keyword.iskeyword(cmd_name))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for heading, commands in _SECTIONS.items():
            with formatter.section(heading):
                formatter.write_dl([(name, text) for name, (_, text) in commands.items()], col_spacing=3)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        own = [CompletionItem(name, help=text) for name, (_, text) in _COMMANDS.items() if name.startswith(incomplete)]
        return [*own, *click.Command.shell_complete(self, ctx, incomplete)]


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="contrails %(version)s")
def cli() -> None:
    """Train the folds of a segmentation model on a cluster and merge them into a submission.

    \b
    Example:
      contrails demo data/demo/raw
      contrails prepare data/demo/raw data/demo/train.h5
      contrails prepare data/demo/raw data/demo/test.h5 --split test
      contrails split data/demo/train.h5 --folds 5 -o filelists/demo.csv
      contrails submit --folds 5 --wait
      contrails aggregate default --data data/demo/test.h5
    """
    _require_names(sys.argv[1:])


def main() -> None:
    """Run the command line and exit with 0, or with the exit code of the error (see `contrails.errors`)."""
    open_streams()
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # see `contrails.__main__`
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = cli(prog_name="contrails", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except click.ClickException as error:
        if _wants_json():
            _print_as_json("usage", error.exit_code, error.format_message())
        else:
            error.show()
        sys.exit(error.exit_code)
    except ContrailsError as error:
        _fail(error)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except ReaderGone:
        sys.exit(0)
    except MemoryError as error:
        _fail(
            NodeError(
                f"not enough memory: {error or 'none is left'}; use a machine or job with more memory, or ask for less"
            )
        )
    except OSError as error:
        if error.filename is None:
            raise
        # a path that no command has checked before using it
        _fail(refused(error, Path(os.fsdecode(error.filename))))


def _fail(error: ContrailsError) -> NoReturn:
    if _wants_json():
        _print_as_json(error.code, error.exit_code, str(error))
    else:
        click.echo(f"error: {error}", err=True)
    sys.exit(error.exit_code)


def _wants_json() -> bool:
    return "--json" in sys.argv[1:]


def _print_as_json(code: str, exit_code: int, message: str) -> None:
    """Print an error as the last line of standard error; jobs/sites/README.md documents the codes."""
    click.echo(json.dumps({"error": {"code": code, "exit_code": exit_code, "message": message}}), err=True)


def _require_names(words: Sequence[str]) -> None:
    """Check that the current folder exists, and that all names are valid UTF-8, which tables and JSON need.

    Raises:
        StorageError: the current folder was removed.
        UsageError: a name is not valid UTF-8.
    """
    try:
        folder = os.getcwd()  # noqa: PTH109 - Path.cwd is the same
    except OSError as error:
        raise StorageError(
            f"the current folder cannot be found ({reason_of(error)}): it was removed, moved or unmounted; "
            "change to another one, such as `cd ~`, then run the same command again"
        ) from error
    for name in (*words, folder, os.environ.get("CONTRAILS_RUNS", "")):
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise click.UsageError(
                f"expected names in UTF-8, found {os.fsencode(name)!r}; rename that file or folder, or set a locale "
                "with UTF-8: `export LC_ALL=C.UTF-8`"
            ) from error
