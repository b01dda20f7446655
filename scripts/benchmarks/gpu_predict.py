"""The section of `scripts/bench gpu` about prediction: its rate, and what half precision changes."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gpu_speed import source_and_sampler
from table import Result
from work import Bench, Step

from contrails.aggregate.members.predict import Predictor
from contrails.aggregate.members.views import View
from contrails.models.segmenter import autocast
from contrails.train.evaluate import evaluate


def prediction(bench: Bench) -> Iterator[Result]:
    """Predict all records in fp32 and under bf16 autocast, with a model that has seen a few steps."""
    recipe = bench.recipe("resnet18")
    source, sampler = source_and_sampler(bench, recipe)
    step = Step(recipe, source.num_channels, bench.device)
    for batch in itertools.islice(source.batches(sampler.selections(0, 1)), 2 if bench.is_tiny else 100):
        step(batch)
    model, rows = step.model.eval(), np.arange(source.dataset.num_records)
    rates, probabilities, histograms = {}, {}, {}
    for name in ("fp32", "bf16"):
        predictor = Predictor([(model, source)], [Path("model")], "mean", (1.0,), (0.5,), (View(),), 0, name)
        list(predictor(rows[: len(rows) // 4]))  # warms up, and measures the batch size
        started = time.perf_counter()
        probabilities[name] = np.concatenate([values for _, values in predictor(rows)]).astype(np.int64)
        rates[name] = len(rows) / (time.perf_counter() - started)
        with autocast(bench.device, name):
            histograms[name] = evaluate(model, source, rows, recipe.train.batch_size).histogram
    records = {f"{name}, records/s": rate for name, rate in rates.items()}
    yield Result("prediction in bf16 over fp32, ResNet18", rates["bf16"] / rates["fp32"], "x", "", None, records)
    difference = np.abs(probabilities["bf16"] - probabilities["fp32"]).max() / 65_535
    yield Result("change of a probability in bf16, largest", float(difference), "", "", None)
    dice, threshold = histograms["fp32"].best()
    change = histograms["bf16"].dice(threshold) - dice
    yield Result("change of the Dice in bf16, at the same threshold", change, "", "", None, {"Dice in fp32": dice})
