"""The metadata of a weights file, read without torch."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors

from contrails.errors import DataError
from contrails.files import storage

KEY = "contrails"
"""The single metadata key of a weights file."""


def read_about(path: Path) -> dict[str, Any]:
    """Return the metadata of a weights file without reading its tensors.

    Raises:
        DataError: the file is no safetensors file, is truncated, or was not written by contrails.
    """
    with opened(path, "np") as (_, about):
        return about


@contextmanager
def opened(path: Path, framework: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a weights file with `safetensors.safe_open`; yield it and its metadata. Raises as `read_about`."""
    try:
        with storage(path, "read"), safetensors.safe_open(path, framework) as file:
            yield file, json.loads((file.metadata() or {})[KEY])
    except safetensors.SafetensorError as error:
        raise DataError(
            f"{path}: expected a complete safetensors file, found none ({error}); train or copy it again"
        ) from error
    except KeyError as error:
        raise DataError(
            f"{path}: expected the metadata '{KEY}', found none: contrails did not write the file; give another one"
        ) from error
