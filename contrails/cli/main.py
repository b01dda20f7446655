"""The `contrails` command: finds its subcommands by name and turns the project's errors into exit codes.

A subcommand's module is imported when it is needed, and imports torch, pandas and the like inside its functions,
so that help, submission and status start at once on a login node.
"""

import keyword
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import click

from contrails import __version__
from contrails.cli.streams import ReaderGone, open_streams
from contrails.errors import ContrailsError, NodeError, StorageError, choices
from contrails.files import reason_of, refused

_COMMANDS = {
    "demo": "contrails.cli.demo",
    "prepare": "contrails.cli.prepare",
    "split": "contrails.cli.split",
    "data": "contrails.cli.data",
    "recipe": "contrails.cli.recipe",
    "submit": "contrails.cli.submit",
    "train": "contrails.cli.train",
    "status": "contrails.cli.status",
    "logs": "contrails.cli.logs",
    "cancel": "contrails.cli.cancel",
    "resume": "contrails.cli.resume",
    "continue": "contrails.cli.continue_",
    "drill": "contrails.cli.drill",
    "doctor": "contrails.cli.doctor",
    "sites": "contrails.cli.sites",
    "aggregate": "contrails.cli.aggregate",
    "predict": "contrails.cli.predict",
    "evaluate": "contrails.cli.evaluate",
    "submission": "contrails.cli.submission",
    "weights": "contrails.cli.weights",
    "runs": "contrails.cli.runs",
    "note": "contrails.cli.note",
    "compare": "contrails.cli.compare",
    "usage": "contrails.cli.usage",
    "report": "contrails.cli.report",
    "sync": "contrails.cli.sync",
}
"""Where each command lives, in the order of an experiment; the function has the command's name."""


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            ctx.fail(f"no command '{cmd_name}'; {choices(cmd_name, _COMMANDS)}")
        function = cmd_name + "_" * keyword.iskeyword(cmd_name)
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name]), function)
        return command


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, message="contrails %(version)s")
def cli() -> None:
    """Train the folds of a segmentation model on a cluster and merge them into a submission.

    \b
    Example:
      contrails demo data/demo/raw
      contrails prepare data/demo/raw data/demo/train.h5
      contrails split data/demo/train.h5 --folds 5 -o filelists/demo.csv
      contrails submit --folds 5 --wait
      contrails aggregate default --data data/demo/test.h5
    """
    _require_names(sys.argv[1:])


def main() -> None:
    """Run the command line; the exit code is 0, or that of the error (see `contrails.errors`)."""
    open_streams()
    try:
        code = cli(prog_name="contrails", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code)
    except click.ClickException as error:
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
                f"not enough memory: {error or 'none is left'}; go to a machine or a job with more, or ask for less"
            )
        )
    except OSError as error:
        if error.filename is None:
            raise
        # a path that no command looked at before it used it
        _fail(refused(error, Path(os.fsdecode(error.filename))))


def _fail(error: ContrailsError) -> NoReturn:
    click.echo(f"error: {error}", err=True)
    sys.exit(error.exit_code)


def _require_names(words: Sequence[str]) -> None:
    """Check that the current folder exists, and that all names are text, which tables and JSON can hold.

    Raises:
        StorageError: the current folder was removed.
        UsageError: a name is no UTF-8.
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
                f"expected names in UTF-8, found {os.fsencode(name)!r}; rename what is called so, or set a locale in "
                "UTF-8: `export LC_ALL=C.UTF-8`"
            ) from error
