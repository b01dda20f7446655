"""What the scores of a run and the class of its masks are called, from the recipe that was frozen in it."""

from typing import Any

from contrails.errors import ContrailsError
from contrails.files import read_toml
from contrails.runs.folder import Run


def dice_by(counted: str | None) -> str:
    """Return what a Dice that counts pixels, as usual, or records is called."""
    return "Dice by record" if counted == "record" else "Dice"


def confusion_cut(scores: dict[str, Any]) -> str:
    """Return where a classifier's records were cut for their confusion out of fold."""
    if "dice_cross_fitted" in scores:
        return "cross-fitted, each fold cut at the threshold that the others chose"
    return "one fold, cut at the threshold that is best on its records"


def dice_name(run: Run) -> str:
    """Return what a Dice of the run is called: that of a classifier counts records, not pixels."""
    return dice_by("record" if _table(run, "model").get("task") == "classify" else "pixel")


def title(run: Run) -> str:
    """Return the title of a table of the run's folds: its name, and what a Dice counts where that is not pixels."""
    name = dice_name(run)
    return run.name if name == "Dice" else f"{run.name} ({name})"


def target_name(run: Run, usual: str) -> str:
    """Return what the masks show as the recipe calls it, else the usual name."""
    return str(_table(run, "data").get("target_name") or usual)


def _table(run: Run, name: str) -> dict[str, Any]:
    """Return a table of the recipe, also of a run of an older version; empty where it cannot be read."""
    try:
        table = read_toml(run.toml, "a run").get("recipe", {}).get(name, {})
    except ContrailsError:
        return {}
    return table if isinstance(table, dict) else {}
