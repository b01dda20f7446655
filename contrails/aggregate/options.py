"""The options of an aggregation and their valid values; without torch, so that a login node can check them."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contrails.errors import RecipeError, choices
from contrails.runs.folder import run_of

MERGE_RULES = ("mean", "logits", "median", "median-mean", "vote")
"""Rules that merge the probabilities of members; see `contrails.aggregate.members.merge`."""

ELEMENTS = {"none": (0,), "flips": (0, 1, 2, 3), "d4": tuple(range(8))}
"""Dihedral elements for the words of --tta; `scales` and `crop` add further views."""

AUTO, SOUP = "auto", "soup"
AVERAGE = re.compile(r"(last|best)([1-9][0-9]*)")
"""Matches an average of a number of epochs."""

FULL = "fp32"
PRECISIONS = (FULL, "bf16", "fp16")

_WEIGHTS = ("best", "final", "ema", "swa", AUTO, SOUP, "last5", "best5")
_VIEWS = (*ELEMENTS, "scales", "crop")


@dataclass(frozen=True)
class Options:
    """The options of an aggregation; see `contrails aggregate --help`."""

    weights: str = AUTO
    merge: str = "mean"
    tta: str = "none"
    pad: int = 0
    fit_weights: bool = False
    average_folds: bool = False
    allow: bool = False
    gate: str = ""
    precision: str = FULL

    def record(self) -> dict[str, Any]:
        """Return the options as a request or a file of predictions records them."""
        values = asdict(self)
        return values | noted(values.pop("precision"))

    def require_known(self) -> None:
        """Check what can be checked without the runs.

        Raises:
            RecipeError: an option has an invalid value.
        """
        if self.weights not in _WEIGHTS and not AVERAGE.fullmatch(self.weights):
            raise RecipeError(f"--weights {self.weights}: {choices(self.weights, _WEIGHTS)} (or another number)")
        if self.merge not in MERGE_RULES:
            raise RecipeError(f"--merge {self.merge}: {choices(self.merge, MERGE_RULES)}")
        if self.precision not in PRECISIONS:
            raise RecipeError(f"--precision {self.precision}: {choices(self.precision, PRECISIONS)}")
        require_views(self.tta)


def noted(precision: str) -> dict[str, str]:
    """Return how results record their precision: not at all if it is fp32, as older versions knew no other."""
    return {} if precision == FULL else {"precision": precision}


def made_by(path: Path) -> str:
    """Return the command that makes the ensemble at `path`, or that with `path` in its folder, as a user types it."""
    run = run_of(path)
    return f"`contrails aggregate {'RUN' if run is None else run.typed}`"


def require_views(text: str) -> None:
    """Check the words of --tta.

    Raises:
        RecipeError: a word is unknown.
    """
    if wrong := [word for word in text.split("+") if word not in _VIEWS]:
        raise RecipeError(f"--tta {text}: expected words joined by +; {choices(wrong[0], _VIEWS)}")
