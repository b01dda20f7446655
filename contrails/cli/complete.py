"""Shell completion of run names, site names and recipe keys; the shell itself completes file names.

Nothing heavy is imported. Errors are ignored, since a message would appear in the line that the user is typing.
"""

from collections.abc import Iterable
from contextlib import suppress

import click
from click.shell_completion import CompletionItem

from contrails.cluster.schedulers.profiles import BUILT_IN, profile_files
from contrails.errors import ContrailsError
from contrails.runs.folder import all_runs


def complete_runs(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a run, or a folder if the text looks like a path."""
    if "/" in incomplete or incomplete.startswith("."):
        return [CompletionItem(incomplete, type="dir")]
    with suppress(ContrailsError, OSError):
        return _items((run.name for run in all_runs()), incomplete)
    return []


def complete_sites(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the name of a site."""
    with suppress(ContrailsError, OSError):
        return _items({*BUILT_IN, *(path.stem for path in profile_files())}, incomplete)
    return []


def complete_keys(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a key of a recipe, followed by `=`."""
    from contrails.recipe.reading import keys
    from contrails.recipe.recipe import Recipe

    return _items((f"{name}=" for name, _ in keys(Recipe) if "[" not in name), incomplete)


def _items(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete) and name.isprintable()]
