"""What is written in a weights file beside its tensors, read without torch."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors

from contrails.errors import DataError
from contrails.files import storage

KEY = "contrails"
"""The one metadata key of such a file."""


def read_about(path: Path) -> dict[str, Any]:
    """Return what the weights are, without reading them.

    Raises:
        DataError: the file is no safetensors file, is cut short, or was not written by contrails.
    """
    with opened(path, "np") as (_, about):
        return about


@contextmanager
def opened(path: Path, framework: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a weights file for `safetensors.safe_open`, and give what it says of itself; raises as `read_about`."""
    try:
        with storage(path, "read"), safetensors.safe_open(path, framework) as file:
            yield file, json.loads((file.metadata() or {})[KEY])
    except safetensors.SafetensorError as error:
        raise DataError(f"{path} is not a complete safetensors file ({error}); train or copy it again") from error
    except KeyError as error:
        raise DataError(f"{path} has no metadata '{KEY}': it was not written by contrails") from error
