"""Batches from the dataset file beside the usual input pipelines, on the same records."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import torch
from table import Result, rates, show
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from contrails.config import Recipe
from contrails.data.batches import Part, Source, _Slot
from contrails.data.pack import make_plan, pack
from contrails.data.store import open_dataset

NUM_RECORDS, SIZE, BATCH = 256, 256, 16
BANDS = ("b11", "b14", "b15")


class Records(TorchDataset[torch.Tensor]):
    """The peers: one record an item, int16 (3, H, W), or its ash composite in float32."""

    def __init__(self, read: Callable[[int], np.ndarray], *, ash: bool) -> None:
        self.read, self.ash = read, ash

    def __len__(self) -> int:
        return NUM_RECORDS

    def __getitem__(self, index: int) -> torch.Tensor:
        array = self.read(index)
        if not self.ash:
            return torch.from_numpy(array)
        b11, b14, b15 = array.astype(np.float32) * np.float32(0.01) + np.float32(273.15)
        stacked = np.stack([(b15 - b14 + 4) / 6, (b14 - b11 + 4) / 9, (b14 - 243) / 60])
        return torch.from_numpy(np.clip(stacked, 0, 1))


class Npy:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, index: int) -> np.ndarray:
        bands = [np.load(self.folder / f"{index:05d}" / f"band_{band}.npy")[..., 4] for band in (11, 14, 15)]
        return np.rint((np.stack(bands) - np.float32(273.15)) * 100).astype(np.int16)


class H5:
    def __init__(self, path: Path) -> None:
        self.path, self.file = path, None

    def __call__(self, index: int) -> np.ndarray:
        if self.file is None:
            self.file = h5py.File(self.path, "r")
        array: np.ndarray = self.file["bands"][index, 0]
        return array


class Ram:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __call__(self, index: int) -> np.ndarray:
        return self.array[index, 0]


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name))


def measure(folder: Path) -> None:
    path = make_records(folder)
    dataset = open_dataset(path)
    recipe = Recipe.model_validate({"data": {"dataset": str(path), "filelist": "none"}})
    source = Source(dataset, recipe, torch.device("cpu"))
    order = np.random.default_rng(0).permutation(NUM_RECORDS)
    parts = [Part(order[i : i + BATCH], [0] * BATCH) for i in range(0, NUM_RECORDS, BATCH)]
    slot, whole = _Slot(source), np.ascontiguousarray(dataset.bands)
    target = np.empty_like(whole[:BATCH])

    def ours() -> int:
        for part in parts:
            slot.gather(part.rows)
        return NUM_RECORDS

    def plain_copy() -> int:
        for start in range(0, NUM_RECORDS, BATCH):
            np.copyto(target, whole[start : start + BATCH])
        return NUM_RECORDS

    def ours_ready() -> int:
        return sum(len(batch.inputs) for batch in source.batches(parts))

    def loader(read: Callable[[int], np.ndarray], *, ash: bool, workers: int) -> Callable[[], int]:
        made = DataLoader(
            Records(read, ash=ash), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
        )
        return lambda: sum(len(batch) for batch in made)

    def peers(*, ash: bool) -> dict[str, Callable[[], int]]:
        return {
            "DataLoader .npy, 2 workers": loader(Npy(folder / "raw" / "test"), ash=ash, workers=2),
            "DataLoader h5py": loader(H5(path), ash=ash, workers=0),
            "DataLoader RAM": loader(Ram(whole), ash=ash, workers=0),
        }

    results = []
    measured = rates({"ours": ours, "plain copy": plain_copy} | peers(ash=False))
    value = measured.pop("ours")
    for peer, goal in (
        ("DataLoader .npy, 2 workers", 80),
        ("DataLoader h5py", 30),
        ("DataLoader RAM", 10),
        ("plain copy", 0.8),
    ):
        ratio = value / measured[peer]
        results.append(
            Result(
                f"integer batches over {peer}",
                ratio,
                "x",
                f"{goal}x",
                ratio >= goal,
                {"ours/s": value, "peer/s": measured[peer]},
            )
        )
    measured = rates({"ours": ours_ready} | peers(ash=True))
    value = measured.pop("ours")
    for peer, goal in (("DataLoader .npy, 2 workers", 5), ("DataLoader h5py", 3), ("DataLoader RAM", 1.5)):
        ratio = value / measured[peer]
        results.append(
            Result(
                f"batches for the model over {peer}",
                ratio,
                "x",
                f"{goal}x",
                ratio >= goal,
                {"ours/s": value, "peer/s": measured[peer]},
            )
        )
    started = time.perf_counter()
    fresh = open_dataset(path)
    next(Source(fresh, recipe, torch.device("cpu")).batches(parts))
    seconds = time.perf_counter() - started
    results.append(Result("open to first batch", seconds, "s", "0.5 s for 4 GB", seconds < 0.5))
    show(f"data: {NUM_RECORDS} records of 3 x {SIZE} x {SIZE}, batches of {BATCH}", results)


def make_records(folder: Path) -> Path:
    """Write raw records that look like the real thing to a reader, and pack them."""
    random = np.random.default_rng(0)
    base = random.normal(280, 8, (SIZE, SIZE, 8)).astype(np.float32)
    for index in range(NUM_RECORDS):
        record = folder / "raw" / "test" / f"{index:05d}"
        record.mkdir(parents=True)
        for band in (11, 14, 15):
            np.save(record / f"band_{band}.npy", base + np.float32(random.normal()))
    path = folder / "data.h5"
    pack(make_plan(folder / "raw", "test", (11, 14, 15), (4,)), path, 2)
    return path


if __name__ == "__main__":
    main()
