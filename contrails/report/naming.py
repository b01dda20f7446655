"""Names of a run's scores and of the class of its masks, from its frozen recipe."""

from typing import Any

from contrails.errors import ContrailsError
from contrails.files import read_toml
from contrails.runs.folder import Run


def dice_by(counted: str | None) -> str:
    """Return the name of a Dice score that counts pixels, the default, or records."""
    return "Dice by record" if counted == "record" else "Dice"


def confusion_cut(scores: dict[str, Any]) -> str:
    """Return which threshold the confusion matrix of a classifier was computed at."""
    if "dice_cross_fitted" in scores:
        return "cross-fitted, each fold cut at the threshold that the others chose"
    return "one fold, cut at the threshold that is best on its records"


def dice_name(run: Run) -> str:
    """Return the name of the run's Dice score: that of a classifier counts records, not pixels."""
    return dice_by("record" if _table(run, "model").get("task") == "classify" else "pixel")


def title(run: Run) -> str:
    """Return the title of a table of the run's folds: the run's name and, if its Dice counts records, "by record"."""
    name = dice_name(run)
    return run.name if name == "Dice" else f"{run.name} ({name})"


def target_name(run: Run, usual: str) -> str:
    """Return the recipe's name of the class of the masks, or `usual` if it has none."""
    return str(_table(run, "data").get("target_name") or usual)


def _table(run: Run, name: str) -> dict[str, Any]:
    """Return a table of the frozen recipe, also of older versions; empty if it cannot be read."""
    try:
        table = read_toml(run.toml, "a run").get("recipe", {}).get(name, {})
    except ContrailsError:
        return {}
    return table if isinstance(table, dict) else {}
