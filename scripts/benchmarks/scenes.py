"""One scene from a file to a file, beside MONAI's sliding window over the whole scene in memory.

Both load the same model, see tiles of 512 with an overlap of 128 pixels, one at a time, which takes less memory than
several, and write a GeoTIFF mask. Each runs in processes of its own, in turn.
"""

import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
import torch
from memory import grown, resident
from table import Result, show

from contrails.aggregate.ensemble import Ensemble, Member
from contrails.aggregate.options import Options
from contrails.aggregate.output.scene import Tiling, predict_scene
from contrails.inputs.composites import Channel, Composite
from contrails.models.build import build_model
from contrails.models.weights import load_weights, save_weights
from contrails.recipe.recipe import Recipe

SIDE, LARGE_SIDE, ROUNDS = 2048, 20_000, 3
LARGE_HEIGHT = LARGE_SIDE
CUT = Tiling((512, 512), 128, "gaussian")
BATCH = 1
BANDS = ("red", "green", "blue")
MODELS = {
    "small": {"encoder": "tu-test_resnet", "encoder_depth": 3, "decoder_channels": [16, 8, 8]},
    "usual": {"encoder": "resnet18", "encoder_depth": 4, "decoder_channels": [64, 32, 32, 16]},
}


SIZES = {"small": 128, "usual": None}
"""The small model sees tiles at a quarter of their side, so that the large scene takes minutes."""


def main() -> None:
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        for name, height, width in (
            ("scene", SIDE, SIDE),
            ("large", LARGE_HEIGHT, LARGE_SIDE),
            ("strip", 1200, LARGE_SIDE),
        ):
            write_scene(folder / f"{name}.tif", height, width)
        for model, section in MODELS.items():
            write_model(folder / f"{model}.safetensors", section, SIZES[model])
        codes = {who: f"import scenes; scenes.run_{who}({where!r})" for who in ("ours", "monai")}
        measured = [{who: grown(code) for who, code in codes.items()} for _ in range(ROUNDS)]
        seconds = {who: statistics.median(each[who] for each in measured) / 1000 for who in codes}
        bytes_ = {who: grown(f"import scenes; scenes.memory_of(scenes.run_{who}, {where!r})") for who in codes}
        started = time.perf_counter()
        peak = grown(f"import scenes; scenes.run_large({where!r}, 'large', 'small')") / 1e9
        seconds_large = time.perf_counter() - started
        peak_usual = grown(f"import scenes; scenes.run_large({where!r}, 'strip', 'usual')") / 1e9
        results = [
            against(f"time of {SIDE} x {SIDE} pixels", "s", seconds),
            against(f"memory of {SIDE} x {SIDE} pixels", "MB", {who: value / 1e6 for who, value in bytes_.items()}),
            Result(f"peak memory of {LARGE_HEIGHT:,} x {LARGE_SIDE:,} pixels", peak, "GB", "1.5 GB", peak < 1.5),
            Result("its time, with a very small model", seconds_large, "s", "", None),
            Result(
                f"peak memory of a scene {LARGE_SIDE:,} wide, ResNet18", peak_usual, "GB", "1.5 GB", peak_usual < 1.5
            ),
        ]
    show(f"scenes: {os.cpu_count()} cores, {torch.get_num_threads()} threads", results)


def against(name: str, unit: str, measured: dict[str, float]) -> Result:
    ratio = measured["ours"] / measured["monai"]
    return Result(f"{name}, over MONAI", ratio, "x", "1x", ratio <= 1, {f"{k}, {unit}": v for k, v in measured.items()})


def run_ours(folder: str) -> None:
    timed(lambda: predict(Path(folder), "usual", "scene"))


def run_monai(folder: str) -> None:
    """Predict as MONAI's documentation shows it: the whole scene and its probabilities are in memory."""
    from monai.inferers import sliding_window_inference

    def predict_whole() -> None:
        tensors, about = load_weights(Path(folder) / "usual.safetensors")
        model = build_model(Recipe.model_validate(about["recipe"]), len(BANDS)).eval()
        model.load_state_dict(tensors)
        with rasterio.open(Path(folder) / "scene.tif") as source:
            profile, image = source.profile, source.read()
        inputs = torch.from_numpy(image)[None].float() / 255
        with torch.inference_mode():
            logits: torch.Tensor = sliding_window_inference(
                inputs, CUT.size, BATCH, lambda x: model(x).mask[:, None], CUT.overlap / CUT.size[0], CUT.blend
            )
        mask = (torch.sigmoid(logits[0, 0]) >= 0.5).numpy().astype(np.uint8)
        with rasterio.open(Path(folder) / "monai.tif", "w", **profile | {"count": 1}) as out:
            out.write(mask, 1)

    timed(predict_whole)


def run_large(folder: str, scene: str, model: str) -> None:
    """Predict a large scene, and print the peak of all memory."""
    predict(Path(folder), model, scene)
    print(resident("VmHWM"))


def timed(work: Callable[[], object]) -> None:
    """Print the milliseconds that work takes."""
    started = time.perf_counter()
    work()
    print(round(1000 * (time.perf_counter() - started)))


def memory_of(work: Callable[[str], object], folder: str) -> None:
    """Print by how many bytes work raises the peak of memory."""
    before = resident("VmRSS")
    work(folder)
    print(resident("VmHWM") - before)


def predict(folder: Path, model: str, scene: str) -> None:
    member = Member(f"{model}.safetensors", "", "bench", "0", "best", [1], [], None, 0.5, 1.0)
    ensemble = Ensemble(folder, (member,), Options(), 0.5, (), {}, True, "1 of 1 folds", {}, {})
    predict_scene(ensemble, folder / f"{scene}.tif", folder / "ours.tif", "tif", CUT, BANDS, torch.device("cpu"))


def write_model(path: Path, section: dict[str, object], size: int | None) -> None:
    torch.manual_seed(0)
    data = {"dataset": "d.h5", "filelist": "f.csv", "size": size}
    recipe = Recipe.model_validate({"data": data, "model": section})
    composite = Composite(tuple(Channel({band: 1.0}) for band in BANDS))
    about = {
        "recipe": recipe.model_dump(mode="json"),
        "composite": composite.to_dict(),
        "num_channels": len(BANDS),
    }
    save_weights(path, build_model(recipe, len(BANDS)).state_dict(), about)


def write_scene(path: Path, height: int, width: int) -> None:
    """Write a scene of noise that repeats, so that it is small on the disk, block row by block row."""
    block = np.random.default_rng(0).integers(1, 256, (3, 512, 512), np.uint8)
    profile = {"driver": "GTiff", "count": 3, "height": height, "width": width, "dtype": "uint8", "compress": "zstd"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", tiled=True, blockxsize=512, blockysize=512, **profile) as file:
            for row in range(0, height, 512):
                rows = np.tile(block, (1, 1, -(-width // 512)))[:, : height - row, :width]
                file.write(rows, window=((row, row + rows.shape[1]), (0, width)))


if __name__ == "__main__":
    main()
