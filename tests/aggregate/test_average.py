"""Averages of weights beside torch's own; what cannot be averaged; the order of the files; soups; batch norm."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_MODEL
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.swa_utils import AveragedModel, update_bn

from contrails.aggregate.members.average import average_weights, greedy_soup, refresh_batch_norm
from contrails.dataset.store import open_dataset
from contrails.errors import DataError
from contrails.inputs.batches import Source, in_order, source_of
from contrails.inputs.composites import Composite, channels_of
from contrails.models.build import build_model
from contrails.models.segmenter import Segmenter
from contrails.models.weights import load_weights, save_weights, stream_weights
from contrails.recipe.recipe import Recipe

CPU = torch.device("cpu")


@pytest.fixture
def recipe(tiny_data: Path) -> Recipe:
    data = {"dataset": str(tiny_data / "train.h5"), "filelist": str(tiny_data / "three.csv")}
    return Recipe.model_validate({"data": data, "model": TINY_MODEL})


def models(recipe: Recipe, count: int = 3) -> list[Segmenter]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(build_model(recipe, 3))
    return made


def saved(folder: Path, networks: list[Segmenter]) -> list[Path]:
    paths = [folder / f"{number}.safetensors" for number in range(len(networks))]
    for path, model in zip(paths, networks, strict=True):
        save_weights(path, model.state_dict(), {})
    return paths


def source(recipe: Recipe) -> Source:
    dataset = open_dataset(recipe.data.dataset)
    return source_of(dataset, recipe, Composite(channels_of(recipe.data, dataset.band_names)), CPU)


def test_equals_torchs_own_average_and_batch_norm(recipe: Recipe, tmp_path: Path) -> None:
    networks, rows, data = models(recipe), np.arange(12), source(recipe)
    theirs = AveragedModel(networks[0])
    for network in networks:
        theirs.update_parameters(network)
    update_bn((batch.inputs for batch in in_order(data, rows, 4)), theirs)
    ours = build_model(recipe, 3)
    ours.load_state_dict(average_weights(saved(tmp_path, networks)))
    assert refresh_batch_norm(ours, data, rows, 4) == 12
    expected = theirs.module.state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.allclose(tensor, expected[name], rtol=1e-5, atol=1e-6), name
    assert not ours.training


def test_an_incomplete_batch_does_not_count_as_a_whole_one(recipe: Recipe) -> None:
    network, data = models(recipe, 1)[0], source(recipe)
    assert refresh_batch_norm(network, data, np.arange(11), 4) == 8
    assert refresh_batch_norm(network, data, np.arange(3), 4) == 3
    assert refresh_batch_norm(torch.nn.Conv2d(3, 1, 1), data, np.arange(3), 4) == 0


def test_batch_norm_statistics_that_are_not_finite_are_told(recipe: Recipe) -> None:
    network = models(recipe, 1)[0]
    for parameter in network.parameters():
        parameter.data.fill_(1e30)
    with pytest.raises(DataError, match=r"averaged weights on 4 training records are not finite: .*, such as best"):
        refresh_batch_norm(network, source(recipe), np.arange(4), 4)


@given(st.permutations(range(4)))
def test_the_order_of_the_files_does_not_matter(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    folder = tmp_path_factory.mktemp("order")
    random = torch.Generator().manual_seed(0)
    paths = [folder / f"{number}.safetensors" for number in range(4)]
    for path in paths:
        save_weights(path, {"w": torch.randn(50, generator=random) * 1e3, "n": torch.tensor(3)}, {})
    mean = average_weights(paths)
    again = average_weights([paths[number] for number in order])
    assert torch.equal(mean["w"], again["w"])
    assert mean["n"].item() == 3
    assert torch.allclose(mean["w"], torch.stack([load_weights(path)[0]["w"] for path in paths]).mean(0), rtol=1e-4)


def broken(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        tensors, about = load_weights(path)
        change(tensors)
        save_weights(path, tensors, about)

    return apply


def foreign(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), r"1.safetensors: expected a complete safetensors file"),
        (lambda path: path.write_bytes(b""), r"1.safetensors: expected a complete safetensors file"),
        (foreign, r"1.safetensors: expected the metadata 'contrails', found none: contrails did not write the file"),
        (broken(lambda tensors: tensors["b"].fill_(float("nan"))), r"1.safetensors holds weights that are not finite"),
        (broken(lambda tensors: tensors.pop("b")), r"1.safetensors lacks b, which .*0.safetensors has"),
        (broken(lambda tensors: tensors.update(b=torch.zeros(3))), r"b: expected \(2,\) as in .*, found \(3,\)"),
        (
            broken(lambda tensors: tensors.update(c=torch.zeros(3))),
            r"c: expected no such tensor, as in .*0.saf",
        ),
    ],
)
def test_what_has_no_mean_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    paths = [tmp_path / "0.safetensors", tmp_path / "1.safetensors"]
    for path in paths:
        save_weights(path, {"a": torch.ones(2), "b": torch.ones(2)}, {})
    damage(paths[1])
    with pytest.raises(DataError, match=message):
        average_weights(paths)


def test_a_soup_takes_what_gains() -> None:
    value = {"a": 0.5, "b": 0.9, "c": 0.1, "d": 0.7}
    ranked = [Path(name) for name in "abcd"]
    chosen = greedy_soup(ranked, lambda paths: float(np.mean([value[path.name] for path in paths])))
    assert [path.name for path in chosen] == ["a", "b"]
    assert greedy_soup(ranked, lambda paths: 1.0) == ranked[:1]


def test_weights_are_streamed(tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", {"a": torch.ones(2), "b": torch.zeros(3)}, {})
    assert {name: tuple(tensor.shape) for name, tensor in stream_weights(tmp_path / "a.safetensors")} == {
        "a": (2,),
        "b": (3,),
    }
