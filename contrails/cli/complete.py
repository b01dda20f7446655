"""What a shell completes after Tab: names of runs and sites, and keys of recipes; names of files it knows itself.

Nothing heavy is imported, and what cannot be read completes nothing: no message may get into the line that is typed.
"""

from collections.abc import Iterable
from contextlib import suppress

import click
from click.shell_completion import CompletionItem

from contrails.cluster.schedulers.profiles import BUILT_IN, profile_files
from contrails.errors import ContrailsError
from contrails.runs.folder import all_runs


def complete_runs(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of runs, or of folders where a path is typed."""
    if "/" in incomplete or incomplete.startswith("."):
        return [CompletionItem(incomplete, type="dir")]
    with suppress(ContrailsError, OSError):
        return _items((run.name for run in all_runs()), incomplete)
    return []


def complete_sites(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of sites."""
    with suppress(ContrailsError, OSError):
        return _items({*BUILT_IN, *(path.stem for path in profile_files())}, incomplete)
    return []


def complete_keys(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the keys of recipes, with the sign that a value follows."""
    from contrails.recipe.reading import keys
    from contrails.recipe.recipe import Recipe

    return _items((f"{name}=" for name, _ in keys(Recipe) if "[" not in name), incomplete)


def _items(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete) and name.isprintable()]
