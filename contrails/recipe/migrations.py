"""Recipes of earlier versions in today's words, for run folders and weights that were made with them.

What somebody asks for now is not migrated: an old key in a recipe file is refused with the name of the nearest one.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Migration:
    """A key that had another name or other values; `now` returns what stands for an old value, by dotted key."""

    key: str
    is_old: Callable[[Any], bool]
    now: Callable[[Any], dict[str, Any]]


MIGRATIONS = (
    Migration(
        "train.freeze_encoder_epochs",
        lambda _: True,
        lambda epochs: {"train.freeze": {"encoder": epochs} if epochs else {}},
    ),
    Migration(  # it could only add one
        "model.relu_features",
        lambda value: isinstance(value, bool),
        lambda value: {"model.relu_features": "add" if value else "own"},
    ),
)
"""The oldest first."""


def migrated(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of a recipe that was frozen by any version, as today's code reads them."""
    tables = deepcopy(dict(recipe))
    for migration in MIGRATIONS:
        section, _, name = migration.key.partition(".")
        table = tables.get(section)
        if not isinstance(table, dict) or name not in table or not migration.is_old(table[name]):
            continue
        for key, value in migration.now(table.pop(name)).items():
            other, _, new = key.partition(".")
            tables.setdefault(other, {})[new] = value
    return tables
