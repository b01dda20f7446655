"""The peer of `contrails prepare`: `python rounding.py FOLDER PROCESSES` loads, checks and rounds records, no more."""

import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np


def load_and_round(folders: list[str]) -> None:
    for folder in folders:
        for band in (11, 14, 15):
            kelvin = np.load(f"{folder}/band_{band}.npy")[:, :, 4]
            assert np.isfinite(kelvin).all()
            np.rint((kelvin - np.float32(273.15)) / np.float32(0.01)).astype(np.int16)
        np.load(f"{folder}/human_individual_masks.npy")


if __name__ == "__main__":
    paths = [str(path) for path in sorted(Path(sys.argv[1]).iterdir())]
    with ProcessPoolExecutor(int(sys.argv[2]), get_context("forkserver")) as pool:
        list(pool.map(load_and_round, [paths[start : start + 32] for start in range(0, len(paths), 32)]))
