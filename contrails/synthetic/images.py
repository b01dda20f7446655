"""Synthetic datasets in the layouts `scenes` and `images-rle`, for the demo and for tests.

Scenes are GeoTIFF files of four bands and several sizes, with clouds over land, water and snow. Images are chest
radiographs, some with a pneumothorax (air beside the lung). Both are simple drawings: a model can learn from them, but
they do not look like real images.
"""

import csv
import io
import warnings
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from contrails.dataset.rle import DEFAULT, Convention, encode
from contrails.draws import generator
from contrails.files import atomic_path, write_atomic
from contrails.progress import bar
from contrails.sources.optional import require
from contrails.synthetic.goes import Parameters, claim

BANDS = ("red", "green", "blue", "nir")
CONVENTION = Convention("relative", "columns", "-1", ("ImageId", "EncodedPixels"))
"""The convention of the SIIM-ACR pneumothorax competition."""

_COLOURS = {  # reflectance of red, green, blue and near infrared
    "land": (0.09, 0.10, 0.07, 0.32),
    "water": (0.03, 0.05, 0.07, 0.01),
    "snow": (0.80, 0.82, 0.84, 0.70),
    "cloud": (0.62, 0.62, 0.64, 0.60),
}


def make_scenes(out: Path, parameters: Parameters) -> None:
    """Write `OUT/train/{scenes,masks,filelists}`, `OUT/test/scenes` and a sample submission.

    Scenes from an earlier call with the same parameters are kept.

    Raises:
        DataError: `out` holds other files, or rasterio is not installed.
        StorageError: `out` cannot be written.
    """
    claim(out, {"layout": "scenes"} | asdict(parameters))
    names = {split: _names(split, getattr(parameters, split)) for split in ("train", "validation", "test")}
    with bar("scenes", sum(map(len, names.values()))) as advance:
        for split, of_split in names.items():
            folder = out / ("test" if split == "test" else "train")
            for index, name in enumerate(of_split):
                path, mask_path = folder / "scenes" / f"{name}.tif", folder / "masks" / f"{name}.tif"
                if not path.is_file():
                    bands, mask = draw_scene(parameters.seed, split, index, parameters.size)
                    if split != "test":
                        _write_geotiff(mask_path, mask[None].astype(np.uint8), index)
                    _write_geotiff(path, bands, index)
                advance(1)
    for subset, split in (("train", "train"), ("val", "validation")):
        lines = "".join(f"{name}.tif\n" for name in names[split])
        write_atomic(out / f"train/filelists/{subset}.csv", lines)
    _write_sample(out, names["test"], DEFAULT)


def make_images(out: Path, parameters: Parameters) -> None:
    """Write `OUT/{train,validation,test}/*.png`, tables of masks and a sample submission; raises as `make_scenes`."""
    claim(out, {"layout": "images-rle"} | asdict(parameters))
    splits = ("train", "validation", "test")
    with bar("images", sum(getattr(parameters, split) for split in splits)) as advance:
        for split in splits:
            names, rows = _names(split, getattr(parameters, split)), []
            for index, name in enumerate(names):
                path = out / split / f"{name}.png"
                image, mask = draw_radiograph(parameters.seed, split, index, parameters.size)
                if not path.is_file():
                    with atomic_path(path) as temporary:
                        Image.fromarray(image).save(temporary, "png")
                # one row per side of the chest, as radiologists mark them
                half = np.arange(mask.shape[1]) < mask.shape[1] // 2
                sides = [side for side in (mask & half, mask & ~half) if side.any()]
                rows += [(name, encode(side, CONVENTION)) for side in sides or [mask]]
                advance(1)
            if split != "test":
                write_atomic(out / f"{split}.csv", _table(rows, CONVENTION))
    _write_sample(out, _names("test", parameters.test), CONVENTION)


def draw_scene(seed: int, split: str, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the bands and the cloud mask of a scene; its sides are 1 to 1.5 times `size`.

    Shape:
        bands uint16 (4, H, W) in 1/10000 of reflectance, 0 in a corner without data; mask bool (H, W).
    """
    random = generator(seed, "demo scene", split, index)
    height, width = (int(side) for side in random.integers(size, size + size // 2 + 1, 2))
    fields = [_field(random, height, width, sigma) for sigma in (size / 12, size / 8, size / 20)]
    share = {
        "water": _soft(fields[1] - 0.6),
        "snow": _soft(fields[0] - 1.6),
        "cloud": _soft(fields[2] + 0.4 * _field(random, height, width, 2) - random.uniform(0.4, 1.2)),
    }
    bands = np.broadcast_to(np.array(_COLOURS["land"])[:, None, None], (4, height, width)).copy()
    for name, part in share.items():
        bands += part * (np.array(_COLOURS[name])[:, None, None] - bands)
    bands *= 1 + 0.05 * random.standard_normal(bands.shape)
    counts = np.clip(np.rint(10_000 * bands), 1, 65_535).astype(np.uint16)
    rows, columns = np.indices((height, width))
    counts[:, rows + columns < size // 6] = 0
    return counts, share["cloud"] > 0.5


def draw_radiograph(seed: int, split: str, index: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image uint8 (size, size) and the mask of the air outside of the lung, bool (size, size)."""
    random = generator(seed, "demo radiograph", split, index)
    down, right = np.indices((size, size)) / size
    image = 0.75 + 0.05 * _field(random, size, size, size / 10)
    mask = np.zeros((size, size), bool)
    for centre in (0.29, 0.71):
        x, y = centre + random.normal(0, 0.01), 0.5 + random.normal(0, 0.01)
        chest = ((right - x) / 0.17) ** 2 + ((down - y) / 0.36) ** 2
        image = np.where(chest < 1, 0.35 + 0.06 * _field(random, size, size, size / 40), image)
        if random.random() < 0.35:  # the lung has shrunk towards the heart and the floor of the chest
            shift, left = random.uniform(0.25, 0.5), random.uniform(0.6, 0.8)
            inward = np.sign(0.5 - centre) * 0.17 * shift
            lung = ((right - x - inward) / (0.17 * left)) ** 2 + ((down - y - 0.1 * shift) / (0.36 * left)) ** 2
            air = (chest < 1) & (lung >= 1)
            image = np.where(air, 0.12, image)
            mask |= air
    ribs = 0.08 * (np.sin(2 * np.pi * (9 * down + abs(right - 0.5))) > 0.6)
    noisy = image + ribs + 0.03 * random.standard_normal((size, size))
    return (255 * ndimage.gaussian_filter(noisy, 0.7).clip(0, 1)).astype(np.uint8), mask


def _field(random: np.random.Generator, height: int, width: int, sigma: float) -> np.ndarray:
    """Return smooth noise with a standard deviation of 1, float64 (height, width)."""
    field = ndimage.gaussian_filter(random.standard_normal((height, width)), sigma, mode="wrap")
    scaled: np.ndarray = field / field.std()
    return scaled


def _soft(excess: np.ndarray) -> np.ndarray:
    step: np.ndarray = (1 + np.tanh(6 * excess)) / 2
    return step


def _names(split: str, count: int) -> list[str]:
    return [f"{split}{number:04d}" for number in range(count)]


def _write_geotiff(path: Path, bands: np.ndarray, index: int) -> None:
    rasterio = require("rasterio", "the demo of scenes")
    place = rasterio.Affine(30, 0, 300_000 + 50_000 * index, 0, -30, 5_500_000)
    count, height, width = bands.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width, "dtype": bands.dtype}
    with rasterio.MemoryFile() as content, warnings.catch_warnings():  # in memory, as GDAL does not report a full disk
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        nodata = {"nodata": 0} if count > 1 else {}
        with content.open(**profile, **nodata, crs="EPSG:32633", transform=place) as file:
            file.write(bands)
            if count > 1:
                file.descriptions = BANDS
        write_atomic(path, content.read())


def _write_sample(out: Path, names: list[str], convention: Convention) -> None:
    write_atomic(out / "sample_submission.csv", _table([(name, convention.empty) for name in names], convention))


def _table(rows: list[tuple[str, str]], convention: Convention) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(convention.columns)
    writer.writerows(rows)
    return buffer.getvalue()
