"""Runs that start from the weights of another run: fold k from fold k, under the same file list.

Under another file list, fold k's weights would have been trained on records that the new fold k is scored on.
"""

from collections.abc import Sequence

from contrails.errors import RunError, choices
from contrails.recipe.recipe import Recipe
from contrails.runs.config import DataIdentity, RunConfig, WeightsFile
from contrails.runs.folder import Run, open_run


def find_lineage(recipe: Recipe, identity: DataIdentity) -> dict[str, WeightsFile]:
    """Return the start weights from each finished fold of the recipe's `init.run`; empty without `init.run`.

    Raises:
        RunError: that run has another file list, no finished fold, or no weights of the wanted kind.
    """
    if recipe.init.run is None:
        return {}
    parent = open_run(str(recipe.init.run))
    if parent.read_config().data.filelist != identity.filelist:
        raise RunError(
            f"expected the file list of {parent.name}, found {recipe.data.filelist} with another content: fold k would "
            f"be scored on records that its weights were trained on; use that run's data.filelist ({parent.toml})"
        )
    finished = {fold.key: done for fold in parent.folds() if (done := fold.read_done()) is not None}
    if not finished:
        raise RunError(
            f"expected a finished fold in {parent.name}, found none; check it with `contrails status {parent.typed}`"
        )
    return {key: _weights(parent, key, done["weights"], recipe.init.weights) for key, done in finished.items()}


def require_parents(run: Run, config: RunConfig, folds: Sequence[str]) -> None:
    """Check that every fold has its start weights, if the run starts from another run.

    Raises:
        RunError: some folds have none.
    """
    missing = [key for key in folds if key not in config.lineage]
    if config.recipe.init.run is not None and missing:
        raise RunError(
            f"{config.recipe.init.run.name} had not finished the folds {', '.join(missing)} when {run.name} was made; "
            f"give --fold {','.join(key for key in folds if key in config.lineage) or '...'} for those it had, or "
            "finish them and continue under a new --name"
        )


def _weights(parent: Run, key: str, offered: dict[str, dict[str, str]], asked: str) -> WeightsFile:
    if asked not in offered:
        raise RunError(f"fold {key} of {parent.name} has no weights '{asked}'; {choices(asked, offered)}")
    return WeightsFile(path=parent.fold(key).weights / offered[asked]["file"], sha256=offered[asked]["sha256"])
