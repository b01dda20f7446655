"""Commands of contrails as a user types them: parsed, and not run."""

import click

from contrails.cli.main import cli


def parse(words: list[str]) -> None:
    """Parse the words after `contrails`, as the command line does.

    Raises:
        click.UsageError: a word is missing, or one is unknown.
    """
    command: click.Command | None = cli
    context = click.Context(cli)
    while isinstance(command, click.Group) and words != ["--help"]:
        _, command, words = command.resolve_command(context, words)
        context = click.Context(command or cli, parent=context)
    if command is not None and "--help" not in words:
        command.make_context(None, words, parent=context.parent)
