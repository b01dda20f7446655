"""Aggregation beside the least that it could cost: averaging weights, test-time augmentation, threshold, encoding."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from memory import grown, resident
from table import Result, rates, show

from contrails.aggregate.decide.threshold import cross_fitted, threshold_interval
from contrails.aggregate.members.average import average_weights
from contrails.aggregate.members.predict import Predictor
from contrails.aggregate.members.scored import Scored, tally
from contrails.aggregate.members.views import parse_views, predict_views
from contrails.cli.main import cli
from contrails.dataset.rle import encode
from contrails.dataset.store import Dataset, open_dataset
from contrails.inputs.batches import source_of
from contrails.inputs.composites import Composite, channels_of
from contrails.models.build import build_model
from contrails.models.segmenter import Segmenter
from contrails.models.weights import save_weights
from contrails.recipe.recipe import Recipe

NUM_MEMBERS, NUM_RECORDS, SIZE, BATCH = 10, 1856, 256, 2
FEW, MANY, ROUNDS = 64, 512, 5


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dataset = write_dataset(folder)
        results = [
            *averaging(folder),
            augmented(),
            memory_by_records(folder),
            threshold_search(dataset),
            encoding(),
        ]
    show(f"aggregate: {os.cpu_count()} cores, {torch.get_num_threads()} threads", results)


def averaging(folder: Path) -> Iterator[Result]:
    """The mean of members in the page cache, beside reading their files."""
    paths = [folder / f"{number}.safetensors" for number in range(NUM_MEMBERS)]
    for number, path in enumerate(paths):
        save_weights(path, model(number).state_dict(), {})
    size = paths[0].stat().st_size

    def ours() -> int:
        average_weights(paths)
        return NUM_MEMBERS

    def reading() -> int:
        return sum(len(path.read_bytes()) > 0 for path in paths)

    measured = rates({"ours": ours, "reading": reading})
    ratio = measured["reading"] / measured["ours"]
    seconds = {f"{name}, s": NUM_MEMBERS / rate for name, rate in measured.items()}
    name = f"mean of {NUM_MEMBERS} members of {size / 4e6:.0f} M parameters, over reading"
    yield Result(name, ratio, "x", "1.3x", ratio <= 1.3, seconds)
    peak = grown(f"import aggregate; aggregate.average_in({str(folder)!r})") / size
    yield Result("its peak memory, in members", peak, "", "3", peak <= 3)


def average_in(folder: str) -> None:
    """Average and write the members of a folder, and print by how many bytes the peak of memory grew."""
    before = resident("VmRSS")
    paths = sorted(Path(folder).glob("[0-9].safetensors"))
    save_weights(Path(folder) / "mean.safetensors", average_weights(paths), {})
    print(resident("VmHWM") - before)


def augmented() -> Result:
    """The eight views of a batch, each beside a bare forward pass of the same model and batch right after it."""
    network, inputs = model(0), torch.rand(BATCH, 3, SIZE, SIZE)
    ours, bare = [], []
    with torch.inference_mode():
        network(inputs)
        for view in parse_views("d4") * ROUNDS:
            ours.append(seconds_of(partial(predict_views, network, inputs, [view], (0.5, 0.5))))
            bare.append(seconds_of(lambda: network(inputs)))
    ratio = float(np.median(np.divide(ours, bare)))
    seconds = {"a view, s": float(np.median(ours)), "bare, s": float(np.median(bare))}
    return Result(f"D4 of {BATCH} records, over bare forward passes", ratio, "x", "1.05x", ratio <= 1.05, seconds)


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def memory_by_records(folder: Path) -> Result:
    """Peak memory of D4 predictions of few and of many records, in processes of their own."""
    few, many = (
        grown(f"import aggregate; aggregate.predict_records({str(folder)!r}, {count})") for count in (FEW, MANY)
    )
    peers = {f"{count} records, MB": value / 1e6 for count, value in zip((FEW, MANY), (few, many), strict=True)}
    ratio = many / few
    return Result("peak memory, eight times the records", ratio, "x", "1.15x", ratio <= 1.15, peers)


def predict_records(folder: str, count: int) -> None:
    """Predict records and print by how many bytes the peak of memory grew."""
    recipe = recipe_of(Path(folder), "tu-test_resnet", 3, [16, 8, 8])
    dataset = open_dataset(recipe.data.dataset)
    source = source_of(dataset, recipe, Composite(channels_of(recipe.data, dataset.band_names)), torch.device("cpu"))
    models = [(build_model(recipe, 3).eval(), source)]
    predictor = Predictor(models, [Path("untrained")], "mean", [1.0], [0.5], parse_views("d4"), 0)
    before = resident("VmRSS")
    for _ in predictor(np.arange(count) % dataset.num_records):
        pass
    print(resident("VmHWM") - before)


def threshold_search(dataset: Dataset) -> Result:
    """Exact optimum over all folds and of each, cross-fitted, with an interval over groups."""
    random = np.random.default_rng(0)
    count = np.arange(NUM_RECORDS)
    base = random.integers(0, 3000, (32, SIZE, SIZE)).astype(np.uint16)
    hard = np.zeros((32, SIZE, SIZE), np.uint8)
    hard[::2, 100:103, 20:230] = 1
    base[hard > 0] = random.integers(10_000, 60_000, int(hard.sum()))
    votes = np.concatenate([hard] * (NUM_RECORDS // 32))
    stored = np.concatenate([base] * (NUM_RECORDS // 32))
    labelled = replace(
        dataset,
        votes=votes,
        annotators=np.ones(NUM_RECORDS, np.uint8),
        record_ids=tuple(map(str, count)),
        groups=tuple(map(str, count // 2)),
    )
    scored = Scored(labelled, count, np.array([str(index % 5) for index in count]), lambda index: stored[index])

    def search() -> int:
        counted = tally(scored)
        cross_fitted(counted)
        threshold_interval(counted)
        return 1

    seconds = 1 / rates({"ours": search}, rounds=3)["ours"]
    return Result(f"threshold search, {NUM_RECORDS:,} records of {SIZE} x {SIZE}", seconds, "s", "2 s", seconds < 2)


def encoding() -> Result:
    """Run-length encoding of masks of which half are empty, beside the recipe that everybody copies."""
    random = np.random.default_rng(0)
    masks = np.zeros((NUM_RECORDS, SIZE, SIZE), bool)
    for image in masks[::2]:
        for row in random.integers(0, 250, 4):
            image[row : row + 3, : random.integers(50, 200)] = True

    def all_by(encoder: Callable[[np.ndarray], str]) -> Callable[[], int]:
        def run() -> int:
            return sum(len(encoder(mask)) > 0 for mask in masks)

        return run

    assert [encode(mask) for mask in masks[:8]] == [usual(mask) or "-" for mask in masks[:8]]
    measured = rates({"ours": all_by(encode), "usual": all_by(usual)}, rounds=3)
    seconds = {name: NUM_RECORDS / rate for name, rate in measured.items()}
    goal = seconds["usual"] / seconds["ours"] >= 10 or seconds["ours"] < 0.3
    peers = {"the usual recipe, s": seconds["usual"], "ratio": seconds["usual"] / seconds["ours"]}
    return Result(f"encoding {NUM_RECORDS:,} masks", seconds["ours"], "s", "10x or 0.3 s", goal, peers)


def usual(mask: np.ndarray) -> str:
    pixels = np.concatenate([[0], mask.T.flatten(), [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(run) for run in runs)


def model(seed: int) -> Segmenter:
    torch.manual_seed(seed)
    return build_model(recipe_of(Path(), "resnet34", 5, [256, 128, 64, 32, 16]), 3).eval()


def recipe_of(folder: Path, encoder: str, depth: int, channels: list[int]) -> Recipe:
    section = {"encoder": encoder, "encoder_depth": depth, "decoder_channels": channels}
    return Recipe.model_validate(
        {"data": {"dataset": folder / "train.h5", "filelist": folder / "unused.csv"}, "model": section}
    )


def write_dataset(folder: Path) -> Dataset:
    for arguments in (
        ["demo", str(folder / "raw"), "--size", "128", "--train", "32", "--validation", "1", "--test", "1"],
        ["prepare", str(folder / "raw"), str(folder / "train.h5")],
    ):
        cli(arguments, standalone_mode=False)
    return open_dataset(folder / "train.h5")


if __name__ == "__main__":
    main()
