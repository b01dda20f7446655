"""What members were trained on: other units and other values are refused, in dataset files and in scenes."""

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import torch
from conftest import TINY_MODEL
from image_files import write_raster

from contrails.aggregate.apply import predictor
from contrails.aggregate.ensemble import Ensemble, Member, read_ensemble, write_ensemble
from contrails.aggregate.members.inputs import Inputs, inputs_of, require_like
from contrails.aggregate.options import Options
from contrails.aggregate.output.scene import Tiling, predict_scene
from contrails.cli.main import main
from contrails.dataset.layout import Values
from contrails.dataset.store import open_dataset
from contrails.errors import DataError
from contrails.files import sha256
from contrails.inputs.composites import Channel, Composite
from contrails.models.build import build_model
from contrails.models.weights import save_weights
from contrails.recipe.recipe import Recipe

CPU = torch.device("cpu")
BANDS = ("b11", "b14", "b15")
KELVIN = Inputs(Values("int16", 0.01, 273.15, "K"), dict.fromkeys(BANDS, (220.0, 300.0)))
SHARES = Inputs(Values("uint8", 1 / 255, 0.0, "1"), dict.fromkeys(BANDS, (0.0, 1.0)))
BRIGHT = replace(SHARES, usual=dict.fromkeys(BANDS, (0.2, 0.9)))
WIDE = replace(KELVIN, usual=dict.fromkeys(BANDS, (40.0, 260.0)))
SPAN = Inputs(Values("uint16", 80 / 65_534, 220 - 80 / 65_534, "K"), dict.fromkeys(BANDS, (221.0, 299.0)))
"""Of floating-point numbers from 220 to 300 K, which dataset files hold as counts of a range."""

REFLECTANCES = Inputs(Values("uint16", 1e-4, 0.0, "1"), dict.fromkeys(BANDS, (0.0, 1.0)))


@pytest.fixture
def kelvin(tmp_path: Path) -> Ensemble:
    """An ensemble of one member, of random weights, that knows kelvin."""
    torch.manual_seed(0)
    recipe = Recipe.model_validate({"data": {"dataset": "d.h5", "filelist": "f.csv"}, "model": TINY_MODEL})
    composite = Composite(tuple(Channel({band: 0.01}, -2.7) for band in BANDS))
    about = {"recipe": recipe.model_dump(mode="json"), "composite": composite.to_dict(), "num_channels": 3}
    folder = tmp_path / "ensemble"
    folder.mkdir()
    save_weights(folder / "member.safetensors", build_model(recipe, 3).state_dict(), about)
    digest = sha256(folder / "member.safetensors")
    member = Member("member.safetensors", digest, "run", "0", "best", [1], [], None, 0.5, 1.0)
    ensemble = Ensemble(folder, (member,), Options(), 0.5, (), {}, True, "1 of 1 folds", {}, {}, inputs=KELVIN)
    write_ensemble(ensemble)
    (folder / "filelist.csv").write_text("record_id,group,fold\nx,x,0\n")
    return read_ensemble(folder)


def predict(ensemble: Ensemble, path: Path) -> np.ndarray:
    out = path.with_name("out.tif")
    predict_scene(ensemble, path, out, "probabilities", Tiling((32, 32), 8), BANDS, CPU, force=True)
    with rasterio.open(out) as file:
        found: np.ndarray = file.read(1)
    return found


def temperatures(low: float, high: float) -> np.ndarray:
    return np.linspace(low, high, 3 * 40 * 50, dtype=np.float32).reshape(3, 40, 50)


def test_what_members_know_is_read_again(kelvin: Ensemble) -> None:
    assert kelvin.inputs == KELVIN
    assert Inputs.from_dict(asdict(KELVIN)) == KELVIN


def test_the_training_data_say_what_is_usual(tiny_data: Path) -> None:
    dataset = open_dataset(tiny_data / "train.h5")
    found = inputs_of(dataset)
    assert found.values == KELVIN.values
    exact = np.percentile(dataset.bands[:, :, 1] * 0.01 + 273.15, (0.1, 99.9))
    assert found.usual["b14"] == pytest.approx(tuple(exact), abs=1.5)


def test_a_scene_in_kelvin_is_predicted_as_a_dataset_in_kelvin_is(kelvin: Ensemble, tmp_path: Path) -> None:
    exact = temperatures(230, 290)
    found = predict(kelvin, write_raster(tmp_path / "float.tif", exact))
    counts = np.rint((exact.astype(np.float64) - 273.15) / 0.01).astype(np.int16)
    path = write_raster(tmp_path / "counts.tif", counts)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets, file.units = (0.01,) * 3, (273.15,) * 3, ("kelvin",) * 3
    assert np.array_equal(predict(kelvin, path), found)


def test_values_that_do_not_fit_are_told(kelvin: Ensemble, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bands = temperatures(230, 290)
    bands[:, :20] = 900
    predict(kelvin, write_raster(tmp_path / "scene.tif", bands))
    assert "scene.tif: about 0.5 of the values are outside the usual range of the training data" in caplog.text


@pytest.mark.parametrize(
    ("bands", "inputs", "message"),
    [
        (
            temperatures(0, 255).astype(np.uint8),
            KELVIN,
            "expected values in K, as in training, found values in 1",
        ),
        (
            temperatures(-60, 20),
            KELVIN,
            "expected the band b1[145] from about 220 to 300 K, .* found .* to .*, mostly outside",
        ),
        (
            temperatures(0, 255).astype(np.uint8),
            REFLECTANCES,
            "expected values in 1, with a scale, .*, found fractions of t",
        ),
        (
            temperatures(40, 200).astype(np.uint16),
            SHARES,
            "found all bands in the lowest 1/128 of it .* fewer bits than",
        ),
        (temperatures(40, 200).astype(np.int32), SHARES, "found all bands in the lowest 1/128 of it"),
        (temperatures(40, 200).astype(np.uint16), BRIGHT, "expected the band b1[145] from about 0.2 to 0.9 1"),
        (temperatures(-40, 0), WIDE, "expected the band b1[145] from about 40 to 260 K, .* mostly outside"),
        (temperatures(301, 305), SPAN, "expected the band b1[145] from about 221 to 299 K, .* mostly outside"),
        (temperatures(0, 255), SHARES, "expected the band b1[145] from about 0 to 1 1, as in training"),
        (
            temperatures(0, 255),
            None,
            r"expected 8 or 16 bits without a scale, found no bits of float32 .*aggregate RUN",
        ),
    ],
)
def test_a_scene_of_another_kind_is_refused(
    kelvin: Ensemble, tmp_path: Path, bands: np.ndarray, inputs: Inputs | None, message: str
) -> None:
    path = write_raster(tmp_path / "scene.tif", bands)
    with pytest.raises(DataError, match=message):
        predict(replace(kelvin, inputs=inputs), path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["ensemble", "scene.tif"]


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 0, np.uint8), (0, 2, np.uint8), (255, 255, np.uint8), (0, 20, np.uint16), (0, 2_000, np.uint16)],
)
def test_a_dark_or_a_bright_scene_is_predicted(
    kelvin: Ensemble, tmp_path: Path, low: int, high: int, dtype: type, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_raster(tmp_path / "scene.tif", np.rint(temperatures(low, high)).astype(dtype))
    assert predict(replace(kelvin, inputs=SHARES), path).shape == (40, 50)
    assert "usual range" not in caplog.text


@pytest.mark.parametrize(("count", "refused"), [(0, True), (1, False), (40_000, False), (65_535, True)])
def test_a_dataset_of_values_cut_off_at_a_range_is_refused(tiny_data: Path, count: int, refused: bool) -> None:
    dataset = open_dataset(tiny_data / "train.h5")
    values = SPAN.values
    cut_off = replace(
        dataset,
        bands=np.full(dataset.bands.shape, count, np.uint16),
        votes=np.zeros(dataset.votes.shape, np.uint8),
        scale_factor=values.scale_factor,
        add_offset=values.add_offset,
        options="--layout=scenes --range=220.0,300.0",
    )
    with pytest.raises(DataError, match="mostly outside") if refused else nullcontext():
        require_like(SPAN, cut_off, BANDS, "")
    require_like(SPAN, replace(cut_off, options="--layout=scenes"), BANDS, "")


def test_a_scene_of_another_scale_is_refused(kelvin: Ensemble, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "scene.tif", temperatures(0, 10_000).astype(np.uint16))
    with rasterio.open(path, "r+") as file:
        file.scales = (1e-4,) * 3
    assert predict(replace(kelvin, inputs=REFLECTANCES), path).shape == (40, 50)
    with pytest.raises(
        DataError, match=r"expected fractions of the full range of the bits, .*, found values in 1, with a scale"
    ):
        predict(replace(kelvin, inputs=SHARES), path)


def _celsius(file: h5py.File) -> None:
    file["bands"].attrs["units"] = "degC"
    file["bands"].attrs["add_offset"] = 0.0


def _shifted(file: h5py.File) -> None:
    file["bands"].attrs["add_offset"] = 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_celsius, "expected values in K, as in training, found values in degC"),
        (_shifted, "expected the band b1[145] from about 220 to 300 K, .* mostly outside"),
    ],
)
def test_a_dataset_of_another_kind_is_refused(
    kelvin: Ensemble,
    tiny_data: Path,
    tmp_path: Path,
    change: Callable[[h5py.File], None],
    message: str,
    own_streams: None,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = tmp_path / "train.h5"
    shutil.copy(tiny_data / "train.h5", data)
    with h5py.File(data, "r+") as file:
        change(file)
    with pytest.raises(DataError, match=message):
        predictor(kelvin, open_dataset(data), CPU)
    for command in (
        ["predict", str(kelvin.path), str(data), str(tmp_path / "out")],
        ["evaluate", str(kelvin.path), str(data)],
    ):
        monkeypatch.setattr("sys.argv", ["contrails", *command])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == DataError.exit_code
        assert str(data) in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_ensembles_of_the_first_builds_say_that_nothing_is_checked(
    kelvin: Ensemble, tiny_data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = kelvin.path / "ensemble.json"
    content = json.loads(path.read_text())
    del content["inputs"]
    path.write_text(json.dumps(content))
    old = read_ensemble(kelvin.path)
    assert old.inputs is None
    with caplog.at_level(logging.WARNING):
        predictor(old, open_dataset(tiny_data / "train.h5"), CPU)
    assert "the ensemble has no record of its training units and values" in caplog.text
    assert predict(old, write_raster(tmp_path / "scene.tif", temperatures(0, 255).astype(np.uint8))).shape == (40, 50)
