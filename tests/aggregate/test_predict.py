"""Prediction: batches that do not fit are halved and no record is lost; what fits is measured; half precision."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_MODEL

from contrails.aggregate.members.average import refresh_batch_norm
from contrails.aggregate.members.predict import Predictor
from contrails.aggregate.members.views import View
from contrails.cli.main import cli
from contrails.dataset.store import open_dataset
from contrails.errors import DataError, GpuMemoryError, RecipeError
from contrails.files import read_json
from contrails.inputs import batch_size
from contrails.inputs.batch_size import in_fitting_batches
from contrails.inputs.batches import Source, source_of
from contrails.inputs.normalise import fit_composite
from contrails.models.build import build_model
from contrails.models.segmenter import Segmenter
from contrails.recipe.recipe import Recipe
from contrails.runs.folder import Run
from contrails.train.evaluate import evaluate

ROWS = np.arange(12)


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> Iterator[None]:
    batch_size._sizes.clear()
    yield
    batch_size._sizes.clear()


class Limited:
    """A device whose memory holds `most` records: larger batches fail as torch's allocator does."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.sizes: list[int] = []

    def __call__(self, _module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        self.sizes.append(len(arguments[0]))
        if len(arguments[0]) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 PiB")


@pytest.fixture
def member(tiny_data: Path) -> tuple[Segmenter, Source]:
    data = {"dataset": str(tiny_data / "train.h5"), "filelist": str(tiny_data / "three.csv")}
    recipe = Recipe.model_validate({"data": data, "model": TINY_MODEL})
    dataset = open_dataset(tiny_data / "train.h5")
    source = source_of(dataset, recipe, fit_composite(dataset, recipe, ROWS), torch.device("cpu"))
    torch.manual_seed(0)
    return build_model(recipe, source.num_channels, source.label_position).eval(), source


def predictor(*members: tuple[Segmenter, Source], precision: str = "fp32") -> Predictor:
    count = len(members)
    weights, thresholds = (1.0,) * count, (0.5,) * count
    return Predictor(members, [Path("member")] * count, "mean", weights, thresholds, (View(),), 0, precision)


def all_of(predict: Predictor) -> np.ndarray:
    rows, probabilities = zip(*predict(ROWS), strict=True)
    assert np.array_equal(np.concatenate(rows), ROWS)
    return np.concatenate(probabilities).astype(int)


def test_a_batch_that_does_not_fit_is_halved_and_the_size_remembered(member: tuple[Segmenter, Source]) -> None:
    expected = all_of(predictor(member))
    limited = Limited(2)
    member[0].register_forward_pre_hook(limited)
    assert np.abs(all_of(predictor(member)) - expected).max() <= 1
    assert limited.sizes == [4, 2, 2, 2, 2, 2, 2]
    limited.sizes.clear()
    all_of(predictor(member).on(member[1].dataset))
    assert limited.sizes == [2] * 6


def test_the_records_before_a_batch_that_does_not_fit_are_not_predicted_again(
    member: tuple[Segmenter, Source],
) -> None:
    expected, limited = all_of(predictor(member)), Limited(4)
    member[0].register_forward_pre_hook(limited)
    batches = predictor(member)(ROWS)
    first = next(batches)
    limited.most = 1
    rest = list(batches)
    assert [len(rows) for rows, _ in rest] == [1] * 8
    found = np.concatenate([probabilities for _, probabilities in (first, *rest)])
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert limited.sizes == [4, 4, 2, *[1] * 8]


def test_a_record_that_does_not_fit_is_told(member: tuple[Segmenter, Source]) -> None:
    member[0].register_forward_pre_hook(Limited(0))
    with pytest.raises(
        GpuMemoryError, match=r"a record that fits .*: CUDA out of memory.*; use --device cpu, a larger"
    ):
        all_of(predictor(member))


def test_scores_of_averages_are_halved_too_but_not_in_training(member: tuple[Segmenter, Source]) -> None:
    model, source = member
    expected, limited = evaluate(model, source, ROWS, 8), Limited(3)
    model.register_forward_pre_hook(limited)
    found = evaluate(model, source, ROWS, 8, halve=True)
    assert limited.sizes == [8, 4, *[2] * 6]
    assert found.loss == pytest.approx(expected.loss)
    assert found.histogram.positive.sum() == expected.histogram.positive.sum()
    with pytest.raises(torch.OutOfMemoryError):
        evaluate(model, source, ROWS, 8)
    with pytest.raises(
        GpuMemoryError, match=r"memory for a batch of training, 8 records, .*--weights that are not aver"
    ):
        refresh_batch_norm(model, source, ROWS, 8)


@pytest.mark.parametrize(
    ("free_gb", "sizes"), [(10, [4, 4, 64, 64]), (1.9, [4, 4, *[8] * 16]), (0.1, [4, 4, *[1] * 128])]
)
def test_on_a_gpu_the_size_follows_from_the_memory_of_a_first_batch(
    monkeypatch: pytest.MonkeyPatch, free_gb: float, sizes: list[int]
) -> None:
    """A record takes 0.1 GB beside a model of 1 GB; of the free memory, 0.8 may be used, with 0.3 GB in the cache."""
    gb = 10**9
    numbers: dict[str, Any] = {
        "memory_allocated": gb,
        "max_memory_allocated": int(1.4 * gb),
        "memory_reserved": int(1.3 * gb),
    }
    numbers |= {"mem_get_info": (int((free_gb - 0.3) * gb), 80 * gb), "reset_peak_memory_stats": None}
    for name, value in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=value: value)

    def predict(rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
        for start in range(0, len(rows), size):
            yield rows[start : start + size], size

    device, few = torch.device("cuda"), np.arange(3)
    assert [size for _, size in in_fitting_batches(few, predict, "model", 64, device)] == [4]  # too few to measure
    rows, used = zip(*in_fitting_batches(np.arange(132), predict, "model", 64, device), strict=True)
    assert np.array_equal(np.concatenate(rows), np.arange(132))
    assert [4, *used] == sizes


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_only_the_networks_have_a_lower_precision(member: tuple[Segmenter, Source], precision: str) -> None:
    exact, half = (all_of(predictor(member, member, precision=name)) for name in ("fp32", precision))
    assert 0 < np.abs(half - exact).max() < 0.02 * 65_535
    # between 0.47 and 0.59, bf16 has 38 numbers, so few would be left if the sigmoid or the merge were computed in it
    assert (exact.min() > 0.47 * 65_535, exact.max() < 0.59 * 65_535) == (True, True)
    assert len(np.unique(half)) > 500


def test_an_output_that_a_lower_precision_cannot_hold_is_told(member: tuple[Segmenter, Source]) -> None:
    with torch.no_grad():
        list(member[0].parameters())[-1].fill_(1e5)
    assert all_of(predictor(member)).min() == 65_535
    with pytest.raises(
        DataError, match=r"not finite for the records 1000, .*: in fp16; make the ensemble again with --pre"
    ):
        all_of(predictor(member, precision="fp16"))


@pytest.mark.usefixtures("restore_process")
def test_an_ensemble_in_half_precision_says_how_its_dice_changes(
    aggregated: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    exact = read_json(aggregated.aggregate("default") / "ensemble.json")
    words = ["aggregate", str(aggregated.path), "--weights", "best", "--name", "half", "--precision"]
    with pytest.raises(RecipeError, match=r"--precision bf17: did you mean 'bf16'"):
        cli([*words, "bf17"], standalone_mode=False)
    cli([*words, "bf16", "--json"], standalone_mode=False)
    scores = json.loads(capsys.readouterr().out)["scores"]
    change = scores["precision"]
    assert change["dice_fp32"] == exact["scores"]["dice_cross_fitted"]
    assert change["dice"] == scores["dice_cross_fitted"]
    assert change["change"] == change["dice"] - change["dice_fp32"]
    made = read_json(aggregated.aggregate("half") / "ensemble.json")
    assert (made["options"]["precision"], made["scores"]["precision"]["name"]) == ("bf16", "bf16")
    assert exact["request"]["options"].keys() == made["request"]["options"].keys() - {"precision"}
    cli([*words, "bf16"], standalone_mode=False)
    assert "precision:  bf16 changes the Dice by " in capsys.readouterr().out
