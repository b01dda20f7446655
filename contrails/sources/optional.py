"""Optional libraries, which only some imagery needs: imported on use, so that they need not be installed."""

import importlib
from types import ModuleType

from contrails.errors import DataError


def require(module: str, what: str) -> ModuleType:
    """Import an optional library; `what` says in the error what needs it.

    Raises:
        DataError: the library is not installed; the message has the command that installs it.
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
