"""Changes of a dataset file that its writers would never make."""

import hashlib
from pathlib import Path

import h5py
import numpy as np


def flip_a_bit(path: Path, array: str, row: int) -> None:
    """Flip one bit in the middle of a row, as a bad disk does; everything else stays, the digests too."""
    with h5py.File(path, "r") as file:
        offset, values = file[array].id.get_offset(), file[array]
        size = values.dtype.itemsize * int(np.prod(values.shape[1:]))
    with path.open("r+b") as raw:
        raw.seek(offset + row * size + size // 2)
        byte = raw.read(1)[0]
        raw.seek(-1, 1)
        raw.write(bytes([byte ^ 4]))


def set_row(path: Path, array: str, row: int, values: np.ndarray | int, *, digest: bool) -> None:
    """Give a row other values, with their digest or without."""
    with h5py.File(path, "r+") as file:
        file[array][row] = values
        if digest:
            payload = hashlib.sha256(file[array][row].tobytes()).digest()
            file[f"digests/{array}"][row] = np.frombuffer(payload, np.uint8)
