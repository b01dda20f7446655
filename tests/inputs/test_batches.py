"""Batches: equal to what plain numpy makes of the file, whatever was prepared ahead and wherever they begin."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeRecipe

from contrails.dataset.residency import open_resident
from contrails.dataset.store import Dataset
from contrails.errors import RecipeError
from contrails.inputs import batches
from contrails.inputs.augment.dihedral import move_image, move_label
from contrails.inputs.batches import Batch, Source, in_order, source_of
from contrails.inputs.composites import Channel, Composite, channels_of
from contrails.inputs.sampling import Sampler, Selection
from contrails.recipe.augment import AugmentSection, Kind

CPU = torch.device("cpu")
KELVIN = Composite((Channel({"b14": 1.0}), Channel({"b15": 1.0})))


def kelvin(dataset: Dataset, rows: list[int], frames: list[int]) -> np.ndarray:
    """Return (B, T, 2, H, W) of the bands 14 and 15."""
    return dataset.bands[rows][:, frames][:, :, 1:].astype(np.float64) * 0.01 + 273.15


def same(one: Batch, other: Batch) -> bool:
    return np.array_equal(one.rows, other.rows) and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("inputs", "target", "valid", "hard")
    )


@pytest.mark.parametrize("frames", [[2], [0, 1, 2, 3], [3, 0]])
def test_frames_are_stacked_channel_by_channel(framed: Dataset, frames: list[int]) -> None:
    source = Source(framed, tuple(frames), KELVIN, CPU)
    batch = next(source.batches([Selection(np.array([4, 0, 7]))]))
    expected = kelvin(framed, [4, 0, 7], frames)
    assert source.num_channels == 2 * len(frames)
    assert np.allclose(batch.inputs, expected.reshape(3, 2 * len(frames), 64, 64), atol=1e-3)
    apart = replace(source, time_axis=True)
    assert apart.num_channels == 2
    assert np.allclose(next(apart.batches([Selection(np.array([4, 0, 7]))])).inputs, expected, atol=1e-3)


def test_targets_are_shares_of_annotators_and_ignored_pixels_do_not_count(framed: Dataset) -> None:
    votes, annotators = np.array(framed.votes), np.array([4, 3, 0, 5, 254, 1, 4, 4, 4], np.uint8)
    votes[0, :4, :5] = [[255, 4, 3, 2, 1]] * 4
    votes[3, 0, :3] = [2, 3, 5]
    votes[4, 0, :2] = [254, 127]
    dataset = replace(framed, votes=votes, annotators=annotators)
    batch = next(Source(dataset, (0,), KELVIN, CPU).batches([Selection(np.arange(9))]))
    assert batch.target[0, 0, :5].tolist() == [0, 1, 0.75, 0.5, 0.25]
    assert batch.valid[0, 0, :5].tolist() == [False, True, True, True, True]
    assert batch.hard[0, 0, :5].tolist() == [False, True, True, False, False]
    assert batch.hard[3, 0, :3].tolist() == [False, True, True]
    assert batch.hard[4, 0, :2].tolist() == [True, False]
    assert not batch.valid[2].any()  # unlabelled
    assert torch.isfinite(batch.target).all()
    assert np.array_equal(batch.hard, np.stack([dataset.hard(row) for row in range(9)]))
    hard = next(Source(dataset, (0,), KELVIN, CPU, hard_target=True).batches([Selection(np.arange(9))]))
    assert torch.equal(hard.target, batch.hard.float())
    assert torch.equal(hard.hard, batch.hard)


def test_windows_and_moves_act_on_image_and_label_alike(framed: Dataset) -> None:
    part = Selection(np.array([0, 3]), [(0, 20), (32, 5)], 32, [5, 2])
    batch = next(Source(framed, (2,), KELVIN, CPU).batches([part]))
    for index, (row, (top, left), element) in enumerate(zip(part.rows, part.corners, part.elements, strict=True)):
        window = (slice(top, top + 32), slice(left, left + 32))
        image = torch.from_numpy(kelvin(framed, [row], [2])[0, 0][:, *window])
        assert torch.allclose(batch.inputs[index].double(), move_image(image, element), atol=1e-3)
        share = torch.from_numpy(framed.votes[row][window] / 4.0)
        label = move_label(share, element, framed.label_offset_px, fill=-1)
        assert torch.allclose(batch.target[index].double(), label.clamp(min=0))
        assert torch.equal(batch.valid[index], label >= 0)


ALL_CHANGES = {name: {"probability": 0.6} for name, kind in AugmentSection() if isinstance(kind, Kind)}


@pytest.mark.parametrize(
    ("data", "augment"),
    [({}, {}), ({"crop": 32, "crop_positive": 0.5, "frames": [5, 3]}, {}), ({"frames": [3, 4, 5]}, ALL_CHANGES)],
)
def test_a_batch_is_the_same_whatever_the_depth_residency_and_start(
    framed_path: Path,
    framed: Dataset,
    recipe_with: MakeRecipe,
    monkeypatch: pytest.MonkeyPatch,
    data: dict[str, Any],
    augment: dict[str, Any],
) -> None:
    recipe = recipe_with(data=data, augment=augment, train={"batch_size": 2, "drop_last": False, "positive_share": 0.4})

    def stream(dataset: Dataset, first: int, count: int, ahead: int) -> list[Batch]:
        monkeypatch.setattr(batches, "_AHEAD", ahead)
        sampler = Sampler(dataset, recipe, np.arange(9), "0")
        source = source_of(dataset, recipe, KELVIN, CPU)
        return list(itertools.islice(source.batches(map(sampler.selection, itertools.count(first))), count))

    in_ram = open_resident(framed_path, "ram", stage_dir=None, ram_fd=None, poll=lambda: None)
    assert isinstance(in_ram.bands, np.memmap)
    assert isinstance(framed.bands, np.memmap)
    assert str(in_ram.bands.filename) != str(framed.bands.filename)
    whole = stream(framed, 0, 12, 3)
    for dataset, first, ahead in itertools.product((framed, in_ram), (0, 4, 7), (1, 5)):
        later = stream(dataset, first, 12 - first, ahead)
        assert all(same(one, other) for one, other in zip(whole[first:], later, strict=True))


def test_changes_are_drawn_for_samples_and_made_for_training_alone(framed: Dataset, recipe_with: MakeRecipe) -> None:
    recipe = recipe_with(data={"frames": [3, 4, 5]}, augment=ALL_CHANGES, train={"batch_size": 4})
    source, sampler = source_of(framed, recipe, KELVIN, CPU), Sampler(framed, recipe, np.arange(9), "0")
    part = sampler.selection(3)
    assert set(part.draws) == set(ALL_CHANGES)
    pieces = part.split(3)
    for kind, numbers in part.draws.items():
        assert np.array_equal(np.concatenate([piece.draws[kind] for piece in pieces]), numbers)
        assert not np.array_equal(sampler.selection(4).draws[kind], numbers)
    plain = source_of(framed, recipe_with(data={"frames": [3, 4, 5]}), KELVIN, CPU)
    assert plain.chain is None
    assert not Sampler(framed, recipe_with(), np.arange(9), "0").selection(3).draws
    (one,), (other,) = (list(in_order(each, part.rows, 4)) for each in (source, plain))
    assert same(one, other)
    (changed,) = source.batches([part])
    assert not same(changed, other)
    unmoved = replace(part, draws={}, elements=())
    assert same(next(source.batches([unmoved])), other)


def test_noise_acts_on_kelvin_before_channels_and_normalisation(framed: Dataset, recipe_with: MakeRecipe) -> None:
    tables: dict[str, Any] = {"data": {"composite": ["b14 / b15", "b14 / 100"]}}
    noisy = recipe_with(**tables, augment={"dihedral": 0.0, "noise": {"probability": 1.0}})
    composite = Composite(channels_of(noisy.data, framed.band_names), per_image=False)
    source = source_of(framed, noisy, composite, torch.device("cpu"))
    part = Sampler(framed, noisy, np.arange(9), "0").selection(0)
    (changed,), (plain,) = list(source.batches([part])), list(source.batches([Selection(part.rows)]))
    assert torch.allclose(changed.inputs[:, 0], plain.inputs[:, 0], atol=1e-5)
    factors = changed.inputs[:, 1] / plain.inputs[:, 1]
    assert 1e-4 < (factors - 1).abs().mean() < 0.02


def test_frames_that_cannot_be_reversed_are_named(framed: Dataset, recipe_with: MakeRecipe) -> None:
    reversal = {"time_reversal": {"probability": 0.5}}
    with pytest.raises(RecipeError, match=r"data.frames at distances \[-2, -1, 0\] from it; choose for"):
        source_of(framed, recipe_with(data={"frames": [2, 3, 4]}, augment=reversal), KELVIN, CPU)


def test_in_order_ends_with_what_is_left(framed: Dataset) -> None:
    found = list(in_order(Source(framed, (0,), KELVIN, CPU), np.array([5, 1, 3, 0, 2]), 2))
    assert [batch.rows.tolist() for batch in found] == [[5, 1], [3, 0], [2]]
    assert np.allclose(found[2].inputs, kelvin(framed, [2], [0])[:, 0], atol=1e-3)
    assert list(in_order(Source(framed, (0,), KELVIN, CPU), np.array([], np.int64), 2)) == []


def test_an_error_while_gathering_reaches_the_step(framed: Dataset) -> None:
    with pytest.raises(IndexError):
        list(in_order(Source(framed, (0,), KELVIN, CPU), np.array([0, 99]), 1))


def test_a_frame_that_the_file_lacks_is_named(framed: Dataset, recipe_with: MakeRecipe) -> None:
    with pytest.raises(RecipeError, match=r"data.frames = \[4, 7\]: .*which holds \[2, 3, 4, 5\], found \[7\]"):
        source_of(framed, recipe_with(data={"frames": [4, 7]}), KELVIN, CPU)
    assert source_of(framed, recipe_with(), KELVIN, CPU).frames == (2,)  # the labelled one, frame 4
