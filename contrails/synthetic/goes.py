"""A synthetic dataset in the layout of the OpenContrails competition, for the demo and for tests.

It writes `OUT/{train,validation,test}/<record id>/*.npy`, `{train,validation}_metadata.json`, `sample_submission.csv`,
and the parameters in `demo.json`. As in the real dataset, locations and times recur, and records of one location show
the same ground.
"""

import dataclasses
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from contrails.draws import generator
from contrails.errors import DataError
from contrails.files import atomic_folder, fsync, read_json, remove_leftovers, storage, to_json, write_atomic
from contrails.progress import bar
from contrails.synthetic.sky import BANDS, draw_ground, draw_sky

SPLITS = ("train", "validation", "test")
NUM_FRAMES = 8

_GENERATOR = 1  # written to demo.json; increase it if a change of the code gives other records for the same parameters
_NUM_TILES, _NUM_TIMES = 24, 500
_FIRST_TIME, _TIME_STEP_S, _STEPS_A_YEAR = 1554336000, 1200, 365 * 72
_WARMEST_H = 20  # hour in UTC: afternoon in North America


@dataclass(frozen=True)
class Parameters:
    """The parameters that determine every byte of a dataset: records of each split, side in pixels, seed."""

    train: int
    validation: int
    test: int
    size: int
    seed: int


@dataclass(frozen=True)
class SynthRecord:
    """One record.

    Shape:
        bands float32 (9, size, size, frames) in kelvin; individual int32 (size, size, 1, annotators), 0 and 1.
    """

    bands: np.ndarray
    individual: np.ndarray

    @property
    def pixel(self) -> np.ndarray:
        """The pixel mask, int32 (size, size, 1): marked by strictly more than half of the annotators."""
        majority: np.ndarray = self.individual.mean(axis=3) > 0.5
        return majority.astype(np.int32)


def make_dataset(out: Path, parameters: Parameters) -> None:
    """Write a dataset; records from an earlier call with the same parameters are kept.

    Raises:
        DataError: `out` holds other files, or a dataset with other parameters.
        StorageError: `out` cannot be written.
    """
    claim(out, dataclasses.asdict(parameters))
    seed = parameters.seed
    entries = {}
    for split in SPLITS:
        entries[split] = [_entry(seed, split, index) for index in range(getattr(parameters, split))]
    with bar("records", sum(len(rows) for rows in entries.values())) as advance:
        for split, rows in entries.items():
            for index, entry in enumerate(rows):
                folder = out / split / entry["record_id"]
                if not folder.is_dir():
                    _write_record(folder, make_record(seed, split, index, parameters.size), split)
                advance(1)
    for split in ("train", "validation"):
        write_atomic(out / f"{split}_metadata.json", to_json(entries[split]))
    ids = [entry["record_id"] for entry in entries["test"]]
    sample = [f"{record_id},{'-' if index else '1 3 10 5'}\n" for index, record_id in enumerate(ids)]
    write_atomic(out / "sample_submission.csv", "record_id,encoded_pixels\n" + "".join(sample))


def make_record(seed: int, split: str, index: int, size: int) -> SynthRecord:
    """Draw a record, which depends only on the arguments, not on the number of records."""
    place = _location(seed, split, index)
    warmth_k = 3 * np.cos((place.timestamp / 3600 - _WARMEST_H) / 12 * np.pi)
    ground = draw_ground(generator(seed, "demo ground", place.tile), size) + warmth_k
    sky = draw_sky(generator(seed, "demo sky", split, index), ground)
    noise = generator(seed, "demo noise", split, index)
    bands = np.empty((len(BANDS), size, size, NUM_FRAMES), np.float32)
    for frame in range(NUM_FRAMES):
        bands[..., frame] = sky.frame(frame, noise)
    return SynthRecord(bands, sky.annotate(generator(seed, "demo annotators", split, index)))


@dataclass(frozen=True)
class _Location:
    record_id: str
    tile: int
    timestamp: float


def _location(seed: int, split: str, index: int) -> _Location:
    rng = generator(seed, "demo place", split, index)
    time = generator(seed, "demo time", int(rng.integers(_NUM_TIMES))).integers(_STEPS_A_YEAR)
    timestamp = float(_FIRST_TIME + _TIME_STEP_S * int(time))
    return _Location(str(rng.integers(10**17, 3 * 10**18)), int(rng.integers(_NUM_TILES)), timestamp)


def _entry(seed: int, split: str, index: int) -> dict[str, Any]:
    """Return a record's entry of the metadata."""
    place = _location(seed, split, index)
    rng = generator(seed, "demo tile", place.tile)
    meridian = -3 - 6 * int(rng.integers(8, 20))
    return {
        "record_id": place.record_id,
        "projection_wkt": (
            'PROJCS["unknown",GEOGCS["unknown",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],'
            'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],PROJECTION["Transverse_Mercator"],'
            f'PARAMETER["latitude_of_origin",0],PARAMETER["central_meridian",{meridian}],'
            'PARAMETER["scale_factor",0.9996],PARAMETER["false_easting",500000],PARAMETER["false_northing",0],'
            'UNIT["metre",1]]'
        ),
        "row_min": float(rng.integers(2_500_000, 5_000_000)),
        "row_size": -float(rng.integers(1950, 2050)),
        "col_min": float(rng.integers(200_000, 600_000)),
        "col_size": float(rng.integers(1900, 2000)),
        "timestamp": place.timestamp,
    }


def claim(out: Path, parameters: Mapping[str, Any]) -> None:
    """Create `out` as the folder of a dataset with these parameters, or check that it is one.

    Raises:
        DataError: it holds other files, or a dataset with other parameters.
        StorageError: it cannot be written.
    """
    wanted = {"generator": _GENERATOR, **parameters}
    with storage(out):
        out.mkdir(parents=True, exist_ok=True)
        found = read_json(out / "demo.json")
        occupied = any(out.glob("[!.]*"))
    if found is None and not occupied:
        write_atomic(out / "demo.json", to_json(wanted))
    elif found != wanted:
        what = "other files" if found is None else f"one with {to_json(found)}"
        raise DataError(
            f"{out}: expected an empty folder or a demo dataset with {to_json(wanted)}, found {what}; "
            "choose another folder, or remove this one"
        )


def _write_record(folder: Path, record: SynthRecord, split: str) -> None:
    """Write a record to a temporary folder and rename it, so that the final folder is always complete."""
    arrays = {f"band_{band:02d}.npy": record.bands[index] for index, band in enumerate(BANDS)}
    if split == "train":
        arrays["human_individual_masks.npy"] = record.individual
    if split != "test":
        arrays["human_pixel_masks.npy"] = record.pixel
    remove_leftovers(folder)
    with atomic_folder(folder) as temporary:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            (temporary / name).write_bytes(content.getvalue())
            fsync(temporary / name)
