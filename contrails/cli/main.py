"""The `contrails` command: finds its subcommands by name and turns the project's errors into exit codes.

A subcommand's module is imported when it is needed, and imports torch, pandas and the like inside its functions,
so that help, submission and status start at once on a login node.
"""

import keyword
import os
import sys
from importlib import import_module

import click

from contrails import __version__
from contrails.errors import ContrailsError, choices

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


def main() -> None:
    """Run the command line; the exit code is 0, or that of the error (see `contrails.errors`)."""
    try:
        sys.exit(cli(prog_name="contrails", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ContrailsError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except BrokenPipeError:  # `contrails status | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
