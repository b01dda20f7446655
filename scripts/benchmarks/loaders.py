"""The peers of `data`: torch DataLoaders as training scripts have them, over the same records.

An item is one record: its three bands and its votes as they are stored, or ready for the model: ash composite and
share of annotators, float32.
"""

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

Item = tuple[torch.Tensor, torch.Tensor]
Read = Callable[[int], tuple[np.ndarray, np.ndarray]]
"""Returns the bands (3, H, W), in kelvin or counts of 0.01 K above 273.15 K, and the votes (H, W)."""

_ANNOTATORS = 4


class Records(Dataset[Item]):
    """One record an item; `ready` makes what the model takes."""

    def __init__(self, read: Read, num_records: int, *, ready: bool) -> None:
        self.read, self.num_records, self.ready = read, num_records, ready

    def __len__(self) -> int:
        return self.num_records

    def __getitem__(self, index: int) -> Item:
        bands, votes = self.read(index)
        if not self.ready:
            return torch.from_numpy(bands), torch.from_numpy(votes)
        if bands.dtype == np.int16:
            bands = bands.astype(np.float32) * np.float32(0.01) + np.float32(273.15)
        b11, b14, b15 = bands
        ash = np.clip(np.stack([(b15 - b14 + 4) / 6, (b14 - b11 + 4) / 9, (b14 - 243) / 60]), 0, 1)
        return torch.from_numpy(ash), torch.from_numpy(votes.astype(np.float32) / _ANNOTATORS)


def npy(folder: Path) -> Read:
    """Read the records of the competition: a file a band, kelvin of eight frames."""
    paths = sorted(folder.iterdir())

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        bands = np.stack([np.load(paths[index] / f"band_{band}.npy")[..., 4] for band in (11, 14, 15)])
        masks = np.load(paths[index] / "human_individual_masks.npy")
        return bands, masks.sum(axis=(2, 3), dtype=np.uint8)

    return read


def opened_each_time(path: Path) -> Read:
    """Read one HDF5 file that every item opens: safe with worker processes, and what most scripts do."""

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        with h5py.File(path, "r", locking=False) as file:
            return file["bands"][index, 0], file["votes"][index]

    return read


def kept_open(path: Path) -> Read:
    """Read one HDF5 file that every worker opens once."""
    files: list[h5py.File] = []

    def read(index: int) -> tuple[np.ndarray, np.ndarray]:
        if not files:
            files.append(h5py.File(path, "r", locking=False))
        return files[0]["bands"][index, 0], files[0]["votes"][index]

    return read


def in_ram(bands: np.ndarray, votes: np.ndarray) -> Read:
    """Read arrays that were loaded beforehand."""
    return lambda index: (bands[index, 0], votes[index])


def epoch(read: Read, num_records: int, batch_size: int, num_workers: int, *, ready: bool) -> Callable[[], int]:
    """Return a function that runs one shuffled epoch and returns how many records it saw."""
    records = Records(read, num_records, ready=ready)
    loader = DataLoader(records, batch_size, shuffle=True, num_workers=num_workers, persistent_workers=num_workers > 0)
    return lambda: sum(len(images) for images, _ in loader)
