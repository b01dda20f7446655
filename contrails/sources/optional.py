"""Libraries that only some imagery needs: imported where they are used, so that nobody else has to install them."""

import importlib
from types import ModuleType

from contrails.errors import DataError


def require(module: str, what: str) -> ModuleType:
    """Import an optional library; `what` it is needed for.

    Raises:
        DataError: it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise DataError(
            f"{what} needs {error.name}, which is not installed; run `pip install -e '.[scenes]'` in the clone of "
            "contrails"
        ) from error
