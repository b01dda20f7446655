"""Synthetic GOES-like records in the competition's layout: for the demo, tests and benchmarks.

A scene is a stack of thin layers seen from above. The ground belongs to the tile, so recurring tiles share it; low
clouds, natural cirrus and contrails lie over it, and drift with the wind. A layer of optical depth d and temperature T
turns the brightness b of what is below into b exp(-k d) + T (1 - exp(-k d)). The absorption k grows from band 14 to
band 15, and more so for the small ice crystals of contrails: that is what makes them show in b14 - b15.
"""

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from contrails.draws import derived_seed, generator
from contrails.errors import DataError
from contrails.files import read_json, storage, to_json, write_atomic
from contrails.progress import bar

BANDS = tuple(range(8, 17))
NUM_FRAMES = 8
_LABEL_FRAME = 4
_NUM_TILES = 24

# Clear-sky brightness over a 290 K ground (K), how much of the ground shows through, and the absorption of
# natural cirrus and of contrails relative to band 14.
_CLEAR = {8: 236.0, 9: 245.0, 10: 254.0, 11: 286.2, 12: 264.0, 13: 289.5, 14: 289.0, 15: 286.6, 16: 269.0}
_GROUND = {8: 0.0, 9: 0.03, 10: 0.1, 11: 0.92, 12: 0.5, 13: 1.0, 14: 0.98, 15: 0.93, 16: 0.55}
_CIRRUS = {8: 0.6, 9: 0.7, 10: 0.8, 11: 0.93, 12: 0.9, 13: 0.98, 14: 1.0, 15: 1.1, 16: 1.05}
_CONTRAIL = {8: 0.5, 9: 0.6, 10: 0.7, 11: 0.85, 12: 0.9, 13: 0.92, 14: 1.0, 15: 1.35, 16: 1.2}


@dataclass(frozen=True)
class Demo:
    """What a demo dataset consists of; equal values make equal files."""

    train: int
    validation: int
    test: int
    size: int
    seed: int


@dataclass(frozen=True)
class _Line:
    """A contrail at the labelled frame: centre (y, x) in pixels, direction, half length, bend, width, optical depth."""

    centre: tuple[float, float]
    angle: float
    half_length: float
    bend: float
    width: float
    depth: float

    def profile(self, y: np.ndarray, x: np.ndarray, widen: float = 1.0) -> np.ndarray:
        """Return 0 to 1 across the line, smooth at its ends."""
        dy, dx = y - self.centre[0], x - self.centre[1]
        along = dy * math.sin(self.angle) + dx * math.cos(self.angle)
        across = dy * math.cos(self.angle) - dx * math.sin(self.angle) - self.bend * (along / self.half_length) ** 2
        ends = 1 / (1 + np.exp((np.abs(along) - self.half_length) / 1.5))
        profile: np.ndarray = ends * np.exp(-0.5 * (across / (self.width * widen)) ** 2)
        return profile


def make_demo(out: Path, demo: Demo) -> None:
    """Write a demo dataset; records that are there already are left alone.

    Raises:
        DataError: `out` holds a demo of other values.
        StorageError: it cannot be written.
    """
    marker = out / "demo.json"
    existing = read_json(marker)
    if existing is not None and existing != asdict(demo):
        raise DataError(
            f"{out} holds a demo of other values ({to_json(existing)}); choose another folder, or remove it"
        )
    if existing is None and out.exists() and any(out.iterdir()):
        raise DataError(f"{out} exists and is no demo dataset; choose an empty folder")
    write_atomic(marker, to_json(asdict(demo)))
    counts = {"train": demo.train, "validation": demo.validation, "test": demo.test}
    with bar("demo records", sum(counts.values())) as advance:
        for split, count in counts.items():
            entries = []
            for index in range(count):
                entries.append(_write_record(out, split, index, demo))
                advance(1)
            if split != "test":
                write_atomic(out / f"{split}_metadata.json", json.dumps(entries, indent=1))
    ids = sorted(_record_id(demo.seed, "test", index) for index in range(demo.test))
    write_atomic(out / "sample_submission.csv", "record_id,encoded_pixels\n" + "".join(f"{i},-\n" for i in ids))


def _write_record(out: Path, split: str, index: int, demo: Demo) -> dict[str, object]:
    """Write one record, complete or not at all, and return its metadata."""
    random = generator(demo.seed, "record", split, index)
    tile, record_id = int(random.integers(_NUM_TILES)), _record_id(demo.seed, split, index)
    timestamp = 1_560_000_000.0 + 86_400 * int(random.integers(60)) + 600 * int(random.integers(144))
    folder = out / split / record_id
    if not folder.exists():
        temporary = folder.with_name(f".{record_id}.tmp")
        with storage(folder):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for name, array in _record_files(random, tile, split, demo):
                np.save(temporary / name, array)
            temporary.rename(folder)
    return {
        "record_id": record_id,
        "projection_wkt": f'PROJCS["synthetic",PARAMETER["central_meridian",{-123 + 6 * (tile % 8)}]]',
        "row_min": 1e6 + 5e5 * (tile // 8),
        "row_size": -2000.0,
        "col_min": 4e5,
        "col_size": 2000.0,
        "timestamp": timestamp,
    }


def _record_id(seed: int, split: str, index: int) -> str:
    return str(derived_seed(seed, "id", split, index))


def _record_files(random: np.random.Generator, tile: int, split: str, demo: Demo) -> Iterator[tuple[str, np.ndarray]]:
    lines = _draw_lines(random, demo.size) if random.random() < 0.5 else []
    kelvin = _scene(random, lines, generator(demo.seed, "tile", tile), demo.size)
    for band, array in kelvin.items():
        yield f"band_{band:02d}.npy", array
    if split != "test":
        individual = _annotate(random, lines, demo.size)
        if split == "train":
            yield "human_individual_masks.npy", individual[:, :, None]
        yield "human_pixel_masks.npy", (individual.mean(axis=2) > 0.5).astype(np.int32)[:, :, None]


def _draw_lines(random: np.random.Generator, size: int) -> list[_Line]:
    """Draw one to six contrails; those of one scene share an air route's direction, more or less."""
    route = random.uniform(0, math.pi)
    return [
        _Line(
            centre=(random.uniform(0.2, 0.8) * size, random.uniform(0.2, 0.8) * size),
            angle=route + random.normal(0, 0.25),
            half_length=random.uniform(0.08, 0.35) * size,
            bend=random.normal(0, 0.02) * size,
            width=random.uniform(0.7, 1.3),
            depth=random.uniform(0.08, 0.35),
        )
        for _ in range(int(random.integers(1, 7)))
    ]


def _scene(
    random: np.random.Generator, lines: list[_Line], ground_random: np.random.Generator, size: int
) -> dict[int, np.ndarray]:
    """Return float32 (size, size, 8) in kelvin for each band."""
    margin = 32  # what drifts in from outside
    ground = 290 + 5 * _field(ground_random, size, 2.2) + 2 * _field(ground_random, size, 1.2) + random.normal(0, 4)
    vapour = _field(random, size, 3.0)
    low = np.clip(_field(random, size + 2 * margin, 2.4) - random.uniform(0.8, 2.0), 0, None) * 3
    # natural cirrus: streaks along the wind, some nearly as straight as a contrail, but wider
    cirrus = np.clip(_field(random, size + 2 * margin, 1.9, stretch=3) - random.uniform(0.5, 2.0), 0, None)
    wind = random.normal(0, 1.5, 2)
    y, x = np.mgrid[:size, :size].astype(np.float64)
    bands = {band: np.empty((size, size, NUM_FRAMES), np.float32) for band in BANDS}
    cloud_k, cirrus_k, contrail_k = random.uniform(268, 280), random.uniform(225, 245), random.uniform(218, 228)
    for frame in range(NUM_FRAMES):
        age = frame - _LABEL_FRAME
        down, right = wind * age
        contrail = np.zeros((size, size))
        for line in lines:
            contrail += line.depth * line.profile(y - down, x - right, widen=1 + 0.06 * age)
        layers = (
            (_drifted(low, down / 2, right / 2, size), cloud_k, None),
            (_drifted(cirrus, down, right, size), cirrus_k, _CIRRUS),
            (contrail, contrail_k, _CONTRAIL),
        )
        for band in BANDS:
            seen = _CLEAR[band] + _GROUND[band] * (ground - 290) - (1.1 - _GROUND[band]) * 3 * vapour
            for depth, temperature, absorption in layers:
                # water-vapour bands see only what is high up
                share = (absorption[band] if absorption else 1.0) * (1.0 if absorption else _GROUND[band])
                through = np.exp(-share * depth)
                seen = seen * through + min(temperature, _CLEAR[band]) * (1 - through)
            bands[band][:, :, frame] = seen + random.normal(0, 0.06, (size, size))
    return bands


def _drifted(field: np.ndarray, down: float, right: float, size: int) -> np.ndarray:
    """Return the part of a larger field that the wind has brought over the scene, to the next pixel."""
    margin = (field.shape[0] - size) // 2
    top, left = (margin - int(np.clip(round(shift), -margin, margin)) for shift in (down, right))
    return field[top : top + size, left : left + size]


def _annotate(random: np.random.Generator, lines: list[_Line], size: int) -> np.ndarray:
    """Return int32 (size, size, annotators): they disagree about edges, and some miss what is faint.

    The label at pixel (y, x) shows the image at (y - 0.5, x - 0.5): half a pixel down-right of it.
    """
    y, x = np.mgrid[:size, :size] - 0.5
    masks = []
    for _ in range(int(random.integers(4, 7))):
        mask = np.zeros((size, size), bool)
        for line in lines:
            seen = random.random() < 0.6 + line.depth
            jitter, cut = random.normal(0, 0.25, 2), random.uniform(0.25, 0.55)
            if seen:
                mask |= line.profile(y - jitter[0], x - jitter[1], widen=1.15) > cut
        masks.append(mask)
    return np.stack(masks, axis=2).astype(np.int32)


def _field(random: np.random.Generator, size: int, slope: float, stretch: float = 1.0) -> np.ndarray:
    """Return a random field (size, size) of mean 0 and deviation 1 whose amplitudes fall with wavenumber^-slope.

    `stretch` draws it out along a random direction.
    """
    angle = random.uniform(0, math.pi)
    ky, kx = np.meshgrid(np.fft.fftfreq(size), np.fft.rfftfreq(size), indexing="ij")
    along, across = ky * math.sin(angle) + kx * math.cos(angle), ky * math.cos(angle) - kx * math.sin(angle)
    wavenumber = np.hypot(along * stretch, across)
    wavenumber[0, 0] = np.inf
    spectrum = np.fft.rfft2(random.standard_normal((size, size))) * wavenumber**-slope
    field: np.ndarray = np.fft.irfft2(spectrum, (size, size))
    return (field - field.mean()) / field.std()
