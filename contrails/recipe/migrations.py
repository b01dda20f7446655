"""Migration of recipes that earlier versions have frozen in run folders and weights files.

Recipe files of users are not migrated: an old key there is refused, and the error names the nearest key.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Migration:
    """A key whose name or values have changed. `now` returns the new dotted keys with their values for an old value."""

    key: str
    is_old: Callable[[Any], bool]
    now: Callable[[Any], dict[str, Any]]


MIGRATIONS = (
    Migration(
        "train.freeze_encoder_epochs",
        lambda _: True,
        lambda epochs: {"train.freeze": {"encoder": epochs} if epochs else {}},
    ),
    Migration(  # formerly a bool: whether to add a ReLU
        "model.relu_features",
        lambda value: isinstance(value, bool),
        lambda value: {"model.relu_features": "add" if value else "own"},
    ),
)
"""In the order in which they are applied, the oldest first."""


def migrated(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of a recipe frozen by any earlier version, in the current format."""
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
