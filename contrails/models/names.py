"""Which architectures and encoders there are, without importing torch: a login node refuses what smp does not have.

`smp_names.json` lists them as of the tested version of smp; `scripts/model_names.py` writes it.
"""

import json
import re
from functools import cache
from pathlib import Path

from contrails.config import ModelSection
from contrails.errors import RecipeError, choices, nearest

NAMES = Path(__file__).with_name("smp_names.json")
_TIMM = re.compile(r"tu-[\w.:/-]+")


def require_known(section: ModelSection) -> None:
    """Check the names of a recipe's model; of a timm encoder, tu-NAME, only the form.

    Raises:
        RecipeError: smp has no such architecture or encoder; the nearest names are listed.
    """
    architectures, encoders = known_names()["architectures"], known_names()["encoders"]
    if section.architecture.lower() not in {name.lower() for name in architectures}:
        raise RecipeError(
            f"model.architecture = '{section.architecture}': {choices(section.architecture, architectures)}"
        )
    if section.encoder not in encoders and not _TIMM.fullmatch(section.encoder):
        raise RecipeError(
            f"model.encoder = '{section.encoder}': {nearest(section.encoder, encoders)} (an encoder of "
            "segmentation-models-pytorch), or tu-NAME for a timm model"
        )


@cache
def known_names() -> dict[str, list[str]]:
    """Return the names of smp's architectures and encoders."""
    names: dict[str, list[str]] = json.loads(NAMES.read_text(encoding="utf-8"))
    return names
