"""Loading of .npy files from any source, with an error for each kind of fault."""

from pathlib import Path
from tokenize import TokenError
from typing import Literal

import numpy as np

from contrails.errors import DataError
from contrails.files import storage

_NO_ARRAY = (ValueError, EOFError, OSError, SyntaxError, TokenError, MemoryError)
"""Errors that numpy raises for a truncated file, an invalid header, or a header whose shape is too large."""


def load_npy(path: Path, next_step: str, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """Return the array of a .npy file, read or mapped; `next_step` is the advice in errors.

    Raises:
        DataError: the file is damaged or no .npy file, such as an archive of arrays (.npz) or a pickle.
        StorageError: the file may not be read.
    """
    with storage(path, "read"), path.open("rb") as file:
        if file.read(2) == b"PK":
            raise DataError(
                f"{path}: expected one array, as numpy.save writes it, found an archive, as numpy.savez writes it; "
                f"{next_step}"
            )
    try:
        array: np.ndarray = np.load(path, mmap_mode, allow_pickle=False)
    except _NO_ARRAY as error:
        raise DataError(
            f"{path}: expected a .npy file, found a damaged or another file ({error}); {next_step}"
        ) from error
    return array
