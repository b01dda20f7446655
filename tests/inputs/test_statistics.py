"""Statistics of channels, and the normalisation that is fitted with them."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeRecipe

from contrails.dataset.store import Dataset
from contrails.errors import DataError
from contrails.inputs.batches import Source, in_order, source_of
from contrails.inputs.composites import Channel, Composite, channels_of
from contrails.inputs.normalise import channel_statistics, fit_composite

CPU = torch.device("cpu")


def test_statistics_are_those_of_numpy(framed: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contrails.inputs.normalise._BATCH_SIZE", 2)
    rows = np.array([0, 2, 3, 7, 8])
    composite = Composite((Channel({"b14": 1.0}), Channel({"b15": 1.0, "b14": -1.0})))
    for time_axis in (False, True):
        found = channel_statistics(Source(framed, (1, 2), composite, CPU, time_axis=time_axis), rows)
        b14, b15 = (framed.bands[rows][:, 1:3, band].astype(np.float64) * 0.01 + 273.15 for band in (1, 2))
        channels = [b14, b15 - b14] if time_axis else [b14[:, 0], (b15 - b14)[:, 0], b14[:, 1], (b15 - b14)[:, 1]]
        assert len(found) == len(channels)
        for statistics, values in zip(found, channels, strict=True):
            expected = [values.min(), values.mean(), values.std(), values.max()]
            assert list(vars(statistics).values()) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("composite", ["ash", ["b14", "b14 - b15"]])
def test_mean_std_and_min_max_of_the_training_split(
    framed: Dataset, recipe_with: MakeRecipe, composite: str | list[str]
) -> None:
    rows = np.array([0, 1, 2, 4, 6])
    for normalise in ("mean_std", "min_max"):
        recipe = recipe_with(data={"composite": composite, "normalise": normalise, "frames": [3, 5]})
        fitted = fit_composite(framed, recipe, rows)
        values = next(in_order(source_of(framed, recipe, fitted, CPU), rows, 5)).inputs
        channels = values.reshape(5, 2, -1, 64, 64).movedim(2, 0).flatten(1)  # one scale for all frames
        if normalise == "mean_std":
            assert torch.allclose(channels.mean(1), torch.zeros(1), atol=1e-3)
            assert torch.allclose(channels.std(1), torch.ones(1), atol=1e-3)
        else:
            assert torch.allclose(channels.amin(1), torch.zeros(1), atol=1e-3)
            assert torch.allclose(channels.amax(1), torch.ones(1), atol=1e-3)
        others = fit_composite(framed, recipe, np.array([3, 5, 7]))
        assert others != fitted


def test_without_statistics_nothing_is_read(framed: Dataset, recipe_with: MakeRecipe) -> None:
    recipe = recipe_with(data={"normalise": "per_image"})
    fitted = fit_composite(framed, recipe, np.array([], np.int64))
    assert fitted == Composite(channels_of(recipe.data, framed.band_names), per_image=True)


def test_a_channel_of_one_value_is_refused(framed: Dataset, recipe_with: MakeRecipe) -> None:
    framed.bands[:, :, 1] = 5
    with pytest.raises(
        DataError, match=r"data.normalise = 'min_max': .* a single value in channel 1 .* in all 9 training rec"
    ):
        fit_composite(framed, recipe_with(data={"composite": ["b15", "b14"], "normalise": "min_max"}), np.arange(9))


@pytest.mark.parametrize(
    ("composite", "normalise", "said"),
    [
        (["b14", "b14 - b15"], "none", r"far outside of -10 to 10 \(channel 0: 280 on average\)"),
        ("ash", "none", None),
        ("ash", "imagenet", None),
        (["b14", "b15", "b11"], "imagenet", r"channel 2: 1\d\d\d on average"),
        (["b14"], "mean_std", None),
        (["b14"], "per_image", None),
    ],
)
def test_channels_of_another_size_are_told(
    framed: Dataset,
    recipe_with: MakeRecipe,
    caplog: pytest.LogCaptureFixture,
    composite: Any,
    normalise: str,
    said: str | None,
) -> None:
    recipe = recipe_with(data={"composite": composite, "normalise": normalise, "frames": (3, 4)})
    fit_composite(framed, recipe, np.arange(9))
    assert len(caplog.records) == bool(said)
    assert re.search(said or "", caplog.text)
