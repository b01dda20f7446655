"""Folders of raw data, predicted as the training data were prepared: the same masks as by any other way."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pytest
import rasterio
import torch
from conftest import TINY_MODEL
from image_files import write_raster
from PIL import Image

from contrails.aggregate.ensemble import Ensemble, Member, read_ensemble, write_ensemble
from contrails.aggregate.members.inputs import Inputs, inputs_of
from contrails.aggregate.options import Options
from contrails.cli.main import cli
from contrails.dataset.store import Dataset, open_dataset
from contrails.errors import DataError
from contrails.files import sha256
from contrails.inputs.composites import Channel, Composite
from contrails.models.build import build_model
from contrails.models.weights import save_weights
from contrails.recipe.recipe import Recipe

from raw_records import write_record

BANDS = ("red", "green", "blue", "nir")
RNG = np.random.default_rng(0)

MakeEnsemble = Callable[..., str]


def run(*arguments: object) -> None:
    cli([str(argument) for argument in arguments], standalone_mode=False)


def pixels(*shape: int) -> np.ndarray:
    return RNG.integers(1, 255, shape).astype(np.uint8)


@pytest.fixture
def make_ensemble(tmp_path: Path) -> MakeEnsemble:
    """Make an ensemble of one member, of random weights, that was trained on a dataset file; return its folder."""

    def make(dataset: Dataset, inputs: Inputs | None = None) -> str:
        torch.manual_seed(0)
        bands = dataset.band_names[:3]
        recipe = Recipe.model_validate({"data": {"dataset": "d.h5", "filelist": "f.csv"}, "model": TINY_MODEL})
        composite = Composite(tuple(Channel({band: 1.0}) for band in bands))
        about = {"recipe": recipe.model_dump(mode="json"), "composite": composite.to_dict(), "num_channels": len(bands)}
        folder = tmp_path / "ensemble"
        folder.mkdir()
        save_weights(folder / "member.safetensors", build_model(recipe, len(bands)).state_dict(), about)
        digest = sha256(folder / "member.safetensors")
        member = Member("member.safetensors", digest, "run", "0", "best", [1], [], None, 0.5, 1.0)
        known = inputs_of(dataset) if inputs is None else inputs
        write_ensemble(Ensemble(folder, (member,), Options(), 0.5, (), {}, True, "1 of 1 folds", {}, {}, inputs=known))
        (folder / "filelist.csv").write_text("record_id,group,fold\nx,x,0\n")
        assert read_ensemble(folder).inputs == known
        return str(folder)

    return make


def masks_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.[tp][in][fg]"))}


def require_same(one: Path, other: Path, names: set[str]) -> None:
    mine, others = masks_in(one), masks_in(other)
    assert set(mine) == set(others) == names
    assert all(np.array_equal(mine[name], others[name]) for name in names)
    assert not list(one.parent.glob(".*"))


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    """Folder with two scenes and their masks of unusual values, and train.h5 made of them by unusual options."""
    for name, shape in (("a", (4, 70, 50)), ("b", (4, 40, 90))):
        write_raster(tmp_path / f"raw/scenes/{name}.tif", pixels(*shape), photometric="RGB")
        write_raster(tmp_path / f"raw/masks/{name}.tif", np.uint8(7) * (pixels(*shape[1:]) > 128))
    options = ("--tile=32", "--overlap=8", f"--bands={','.join(BANDS)}", "--mask-values=0=0,7=1")
    run("prepare", tmp_path / "raw", tmp_path / "train.h5", "--layout=scenes", "--workers=1", *options)
    return tmp_path


@pytest.mark.parametrize("source", ["raw", "raw/scenes", "linked"])
def test_a_folder_of_scenes(scenes: Path, make_ensemble: MakeEnsemble, source: str) -> None:
    ensemble = make_ensemble(open_dataset(scenes / "train.h5"))
    (scenes / "linked").symlink_to(scenes / "raw/scenes")
    (scenes / "raw/filelists").mkdir()
    (scenes / "raw/filelists/test.csv").write_text("a\n")  # all that the folder holds is asked for
    run("predict", ensemble, scenes / source, scenes / "masks")
    run("predict", ensemble, scenes / "train.h5", scenes / "expected", "--format=tif")
    require_same(scenes / "masks", scenes / "expected", {"a", "b"})
    (scenes / "alone").mkdir()
    for name in ("a", "b"):
        run("predict", ensemble, scenes / f"raw/scenes/{name}.tif", scenes / f"alone/{name}.tif")
    require_same(scenes / "alone", scenes / "expected", {"a", "b"})
    assert all(0 < (mask == 1).mean() < 1 for mask in masks_in(scenes / "masks").values())


def test_what_is_given_counts(scenes: Path, make_ensemble: MakeEnsemble) -> None:
    ensemble = make_ensemble(open_dataset(scenes / "train.h5"))
    run("predict", ensemble, scenes / "raw", scenes / "masks", "--tile=64", "--overlap=0")
    run("predict", ensemble, scenes / "raw/scenes/a.tif", scenes / "a.tif", "--tile=64", "--overlap=0")
    with rasterio.open(scenes / "a.tif") as file:
        assert np.array_equal(file.read(1), masks_in(scenes / "masks")["a"])
    with pytest.raises(DataError, match=r"expected the bands blue, green, red, found red, nir, blue, x \(no green\)"):
        run("predict", ensemble, scenes / "raw", scenes / "other", "--bands=red,nir,blue,x")
    with pytest.raises(click.UsageError, match=r"--scenes is for a folder of scenes, and \S+a.tif is one scene"):
        run("predict", ensemble, scenes / "raw/scenes/a.tif", scenes / "x.tif", "--scenes={scene}")
    assert not (scenes / "other").exists()
    with pytest.raises(click.UsageError, match=r"need scenes as INPUT, and \S+train.h5 holds none"):
        run("predict", ensemble, scenes / "train.h5", scenes / "other", "--tile=64")


def test_tiles_are_told_and_those_of_prepare_where_nobody_says_any(
    scenes: Path, make_ensemble: MakeEnsemble, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset, scene = open_dataset(scenes / "train.h5"), scenes / "raw/scenes/a.tif"
    ensemble = make_ensemble(dataset)

    def told(*options: str) -> str:
        capsys.readouterr()
        run("predict", ensemble, scene, scenes / "a.tif", "--force", *options)
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tiles of ")]
        return line.removesuffix(" (--tile, --overlap)")

    assert told() == "tiles of 32 x 32 pixels that overlap by 8, as in training"
    assert told("--tile=64") == "tiles of 64 x 64 pixels that overlap by 8; in training 32 and 8"
    whole = replace(dataset, options="", units="1")
    shutil.rmtree(ensemble)
    ensemble = make_ensemble(whole)
    untiled = "that overlap by {}; the members were not trained on tiles"
    assert told("--bands=red,green,blue,nir") == f"tiles of 512 x 512 pixels {untiled.format(64)}"  # as prepare has it
    assert told("--bands=red,green,blue,nir", "--tile=32") == f"tiles of 32 x 32 pixels {untiled.format(8)}"


@pytest.mark.parametrize(("out", "options"), [("a.tif", ()), ("a.png", ()), ("p.tif", ("--format=probabilities",))])
def test_the_same_scene_again_is_done_already(
    scenes: Path, make_ensemble: MakeEnsemble, out: str, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    ensemble, scene = make_ensemble(open_dataset(scenes / "train.h5")), scenes / "raw/scenes/a.tif"
    run("predict", ensemble, scene, scenes / out, *options)
    written = (scenes / out).stat().st_mtime_ns
    assert capsys.readouterr().out == f"{scenes / out}: 70 x 50 pixels\n"
    run("predict", ensemble, scene, scenes / out, *options)
    assert capsys.readouterr().out == f"{scenes / out}: 70 x 50 pixels, complete already: nothing to do\n"
    assert (scenes / out).stat().st_mtime_ns == written
    with pytest.raises(
        DataError, match=r"exists, and is of another ensemble, input or option; .* or --force to replace"
    ):
        run("predict", ensemble, scene, scenes / out, *options, "--overlap=4")
    run("predict", ensemble, scene, scenes / out, *options, "--overlap=4", "--force")
    assert (scenes / out).stat().st_mtime_ns != written


def test_a_damaged_geotiff_is_made_again(scenes: Path, make_ensemble: MakeEnsemble) -> None:
    ensemble, path = make_ensemble(open_dataset(scenes / "train.h5")), scenes / "masks/a.tif"
    run("predict", ensemble, scenes / "train.h5", scenes / "masks")
    content = path.read_bytes()
    for damaged in (content[:-20], content[:30], b""):
        path.write_bytes(damaged)
        run("predict", ensemble, scenes / "train.h5", scenes / "masks")
        assert path.read_bytes() == content


def test_what_is_there_is_replaced_by_force_alone(scenes: Path, make_ensemble: MakeEnsemble) -> None:
    ensemble, data = make_ensemble(open_dataset(scenes / "train.h5")), scenes / "train.h5"
    scene = scenes / "raw/scenes/a.tif"
    for source, out, *options in (
        (scene, "mask.tif"),
        (scene, "mask.png"),
        (scene, "p.tif", "--format=probabilities"),
        (data, "s.csv"),
        (data, "p.h5", "--format=probabilities"),
    ):
        path = scenes / out
        path.write_text("mine")
        with pytest.raises(DataError, match=rf"{path} exists.*; give another name .*, or --force to replace it"):
            run("predict", ensemble, source, path, *options)
        assert path.read_text() == "mine"
        run("predict", ensemble, source, path, *options, "--force")
        assert path.read_bytes() != b"mine"
    run("predict", ensemble, data, scenes / "p.h5", "--format=probabilities")  # goes on with what it has
    folder = scenes / "masks"
    folder.mkdir()
    (folder / "a.png").write_text("mine")
    with pytest.raises(
        DataError, match=r"holds a.png, but no predicted.json that names its origin; .*, or --force to replace"
    ):
        run("predict", ensemble, data, folder, "--format=png")
    run("predict", ensemble, data, folder, "--format=png", "--force")
    run("predict", ensemble, data, scenes / "others", "--format=png")
    mine, others = masks_in(folder), masks_in(scenes / "others")
    assert all(np.array_equal(mine[name], others[name]) for name in ("a", "b"))
    with pytest.raises(click.UsageError, match="--force: a dataset file is never replaced"):
        run("predict", ensemble, data, scenes / "pseudo", "--format=pseudo", "--force")


def test_an_array_with_its_bands_in_front_is_told_in_few_words(scenes: Path, make_ensemble: MakeEnsemble) -> None:
    ensemble = make_ensemble(replace(open_dataset(scenes / "train.h5"), options=""))
    np.save(scenes / "x.npy", pixels(20, 100, 128))
    hint = "20 rows and 128 bands: if they come first, save np.moveaxis"
    with pytest.raises(DataError, match=rf"the bands blue, green, red, found b01, b02, b03 and 125 more \(.*{hint}"):
        run("predict", ensemble, scenes / "x.npy", scenes / "x.tif")
    with pytest.raises(DataError, match=rf"expected 3 bands, red, green, blue, found 128, b01, b02, .*{hint}"):
        run("predict", ensemble, scenes / "x.npy", scenes / "x.tif", "--bands=red,green,blue")


def test_scenes_of_a_file_for_each_band(scenes: Path, make_ensemble: MakeEnsemble) -> None:
    ensemble = make_ensemble(open_dataset(scenes / "train.h5"))
    for name in ("a", "b"):
        with rasterio.open(scenes / f"raw/scenes/{name}.tif") as file:
            for number, band in enumerate(BANDS):
                write_raster(scenes / f"new/{band}/{name}_{band}.tif", file.read(number + 1))
    run("predict", ensemble, scenes / "new", scenes / "masks", "--scenes={band}/{scene}_{band}")
    run("predict", ensemble, scenes / "train.h5", scenes / "expected", "--format=tif")
    require_same(scenes / "masks", scenes / "expected", {"a", "b"})


def test_a_folder_of_images(tmp_path: Path, make_ensemble: MakeEnsemble) -> None:
    sizes = {"a": (40, 60), "b": (32, 50), "c": (40, 33)}
    for name, size in sizes.items():
        write_raster(tmp_path / f"raw/train/{name}.png", pixels(3, *size))
    (tmp_path / "raw/train.csv").write_text("Id,Mask\n" + "".join(f"{name}.png_x,1 40\n" for name in sizes))
    options = ("--rle-columns=Id,Mask", "--rle-class=x", "--rle-empty=")
    run("prepare", tmp_path / "raw", tmp_path / "d.h5", "--layout=images-rle", "--workers=1", *options)
    ensemble = make_ensemble(open_dataset(tmp_path / "d.h5"))
    (tmp_path / "new/deep").mkdir(parents=True)
    for name in ("b", "c"):  # the largest one is missing, and they are padded as it was
        shutil.copy(tmp_path / f"raw/train/{name}.png", tmp_path / "new/deep")
    run("predict", ensemble, tmp_path / "new", tmp_path / "masks")
    run("predict", ensemble, tmp_path / "d.h5", tmp_path / "expected", "--format=png")
    (tmp_path / "expected/a.png").unlink()
    require_same(tmp_path / "masks", tmp_path / "expected", {"b", "c"})
    (tmp_path / "alone").mkdir()
    for name in ("b", "c"):
        run("predict", ensemble, tmp_path / f"new/deep/{name}.png", tmp_path / f"alone/{name}.png")
    require_same(tmp_path / "alone", tmp_path / "expected", {"b", "c"})
    run("predict", ensemble, tmp_path / "new", tmp_path / "s.csv")
    assert [line.partition(",")[0] for line in (tmp_path / "s.csv").read_text().splitlines()] == [
        *("Id", "b.png_x", "c.png_x"),
    ]


def test_images_larger_than_those_of_the_training_are_said(
    tmp_path: Path, make_ensemble: MakeEnsemble, caplog: pytest.LogCaptureFixture
) -> None:
    write_raster(tmp_path / "raw/test/a.png", pixels(3, 32, 32))
    run("prepare", tmp_path / "raw", tmp_path / "d.h5", "--layout=images-rle", "--split=test", "--workers=1")
    ensemble = make_ensemble(open_dataset(tmp_path / "d.h5"))
    write_raster(tmp_path / "new/b.png", pixels(3, 40, 33))
    run("predict", ensemble, tmp_path / "new", tmp_path / "masks")
    assert masks_in(tmp_path / "masks")["b"].shape == (40, 33)
    assert "images of 40 x 33 pixels are larger than the 32 x 32 of the training images" in caplog.text


def test_a_folder_of_records_need_not_be_called_test(
    tiny_data: Path, tmp_path: Path, make_ensemble: MakeEnsemble
) -> None:
    ensemble = make_ensemble(open_dataset(tiny_data / "train.h5"))
    for index in range(2):
        write_record(tmp_path, "mine", f"{index}", seed=index, annotators=0, pixel_mask=False)
    run("predict", ensemble, tmp_path / "mine", tmp_path / "masks")
    assert set(masks_in(tmp_path / "masks")) == {"0", "1"}
    with pytest.raises(click.UsageError, match=r"need scenes as INPUT, and \S+mine holds none"):
        run("predict", ensemble, tmp_path / "mine", tmp_path / "masks", "--overlap=0")


def test_raw_data_that_are_damaged_leave_nothing(scenes: Path, make_ensemble: MakeEnsemble) -> None:
    ensemble = make_ensemble(open_dataset(scenes / "train.h5"))
    path = scenes / "raw/scenes/b.tif"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=r"b.tif: .* damaged, truncated"):
        run("predict", ensemble, scenes / "raw", scenes / "masks")
    assert {each.name for each in scenes.iterdir()} == {"raw", "train.h5", "ensemble"}


def test_an_ensemble_that_does_not_know_how_to_prepare_says_so(scenes: Path, make_ensemble: MakeEnsemble) -> None:
    dataset = open_dataset(scenes / "train.h5")
    ensemble = make_ensemble(dataset, replace(inputs_of(dataset), options=""))
    with pytest.raises(DataError, match=r"found one that only names its bands \(blue, green, red\)"):
        run("predict", ensemble, scenes / "raw", scenes / "masks")


@pytest.mark.parametrize("name", ["m.tif", "m.png", "s.jpg", "masks.v2"])
@pytest.mark.parametrize("source", ["raw", "train.h5"])
def test_only_a_name_of_a_csv_file_makes_a_submission(scenes: Path, name: str, source: str) -> None:
    before = {each.name for each in scenes.iterdir()}
    with pytest.raises(click.BadParameter, match=rf"{name}': expected the ending .csv .*'\.\w+' for .*{source}"):
        run("predict", "no-run", scenes / source, scenes / name)
    assert {each.name for each in scenes.iterdir()} == before


def test_paths_are_checked_before_the_ensemble(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "s.csv").touch()
    with pytest.raises(
        DataError, match=r"nowhere: expected a dataset file, a scene or a folder .* as INPUT, found noth"
    ):
        run("predict", "no-run", tmp_path / "nowhere", tmp_path / "masks")
    with pytest.raises(DataError, match=r"empty: expected a folder of raw data as INPUT, found an empty folder"):
        run("predict", "no-run", tmp_path / "empty", tmp_path / "masks")
    with pytest.raises(click.BadParameter, match=r"s.csv is a file; give the name of a folder"):
        run("predict", "no-run", tmp_path, tmp_path / "s.csv", "--format=npy")
