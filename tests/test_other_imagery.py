"""The whole road on the demos of the layouts `scenes` and `images-rle`: raw files, five folds, a checked submission."""

import csv
import json
from pathlib import Path

import click
import numpy as np
import pytest
import rasterio
import tomli_w

from contrails.cli.main import cli
from contrails.dataset.store import open_dataset
from contrails.folds.filelists import read_filelist
from contrails.sources.rasters import describe, read

MODEL = {"encoder": "tu-test_resnet", "encoder_depth": 3, "decoder_channels": [16, 8, 8]}
SMALL = ("--train=12", "--validation=2", "--test=2", "--size=48")


def run(*arguments: str) -> None:
    cli([str(argument) for argument in arguments], standalone_mode=False)


def train(folder: Path, *options: str, **data: object) -> None:
    """Train five folds of a tiny model in the background of this machine."""
    recipe = {
        "data": {"dataset": str(folder / "train.h5"), "filelist": str(folder / "folds.csv"), **data},
        "model": MODEL,
        "train": {"epochs": 1, "batch_size": 4, "lr": 1e-2},
    }
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe))
    run("submit", str(folder / "recipe.toml"), "--folds=5", "--folds-per-job=5", "--wait", *options)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONTRAILS_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_scenes_to_a_submission(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("demo", "raw", "--layout=scenes", *SMALL)
    tiles = ("--layout=scenes", "--tile=32", "--overlap=8")
    run("prepare", "raw/train", "train.h5", *tiles)
    run("prepare", "raw/test", "test.h5", "--split=test", *tiles)
    run("data", "info", "train.h5", "--plot", "train.png")
    run("split", "train.h5", "--folds=5", "--hold-out=0.15", "-o", "folds.csv")
    run("split", "train.h5", "--check", "folds.csv")
    train(folder, composite=["red", "(nir - red) / (nir + red)", "blue"], normalise="percentiles")
    run("aggregate", "recipe", "--data=test.h5", "--sample=raw/sample_submission.csv", "--tta=d4")
    submission = folder / "runs/recipe/aggregate/default/submission.csv"
    capsys.readouterr()
    run("submission", "check", str(submission), "--data=test.h5", "--sample=raw/sample_submission.csv", "--json")
    assert json.loads(capsys.readouterr().out)["records"] == 2
    run("evaluate", "recipe", "train.h5", "--by=group")
    # of scenes that were trained on, no tile counts, however they are cut
    run("prepare", "raw/train", "cut.h5", "--layout=scenes", "--tile=48", "--overlap=8")
    fixed = read_filelist(folder / "folds.csv")
    folds = zip(fixed.record_ids, fixed.folds, strict=True)
    held_out = {name.partition("_r")[0] for name, fold in folds if fold == -1}
    capsys.readouterr()
    run("evaluate", "recipe", "cut.h5", "--json")
    groups = open_dataset(folder / "cut.h5").groups
    unseen = sum(group in held_out for group in groups)
    assert unseen > 0
    assert json.loads(capsys.readouterr().out)["records"].startswith(f"{unseen} records that nothing was fitted on; ")
    # the tiles of a file come back as whole scenes, the same as those of the scene itself
    run("predict", "recipe", "test.h5", "masks", "--format=tif")
    scene = folder / "raw/test/scenes/test0000.tif"
    run("predict", "recipe", str(scene), "one.tif")
    run("predict", "recipe", str(scene), "one.png", "--tile=48", "--overlap=8", "--blend=gaussian")
    run("predict", "recipe", "raw/test", "folder")
    assert (folder / "folder/test0000.tif").read_bytes() == (folder / "masks/test0000.tif").read_bytes()
    with pytest.raises(click.BadParameter, match="is also INPUT"):
        run("predict", "recipe", str(scene), str(scene))
    run("predict", "recipe", str(scene), "probabilities.tif", "--format=probabilities")
    with rasterio.open("masks/test0000.tif") as whole, rasterio.open("one.tif") as one, rasterio.open(scene) as source:
        assert np.array_equal(whole.read(), one.read())
        assert (whole.crs, whole.transform, whole.shape) == (source.crs, source.transform, source.shape)
        assert np.array_equal(whole.read(1) == whole.nodata, ~source.dataset_mask().astype(bool))
    assert set(np.unique(read(folder / "one.png", (0, 0, 48, 48))[0])) <= {0, 255}
    assert describe(folder / "probabilities.tif").dtype == "uint16"


@pytest.mark.slow
def test_radiographs_to_a_submission(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("demo", "raw", "--layout=images-rle", *SMALL)
    convention = ("--rle-starts=relative", "--rle-empty=-1", "--rle-columns=ImageId,EncodedPixels")
    for split in ("train", "validation", "test"):
        run("prepare", "raw", f"{split}.h5", "--layout=images-rle", f"--split={split}", *convention)
    run("split", "train.h5", "--folds=5", "-o", "folds.csv")
    train(folder, composite=["grey", "grey", "grey"], normalise="imagenet")
    run("aggregate", "recipe", "--data=test.h5", "--sample=raw/sample_submission.csv")
    submission = folder / "runs/recipe/aggregate/default/submission.csv"
    with submission.open() as file:
        assert next(csv.reader(file)) == ["ImageId", "EncodedPixels"]
    capsys.readouterr()
    run("submission", "check", str(submission), "--data=test.h5", "--sample=raw/sample_submission.csv", "--json")
    assert json.loads(capsys.readouterr().out)["records"] == 2
    run("predict", "recipe", "raw/test", "again.csv", "--sample=raw/sample_submission.csv")
    assert (folder / "again.csv").read_bytes() == submission.read_bytes()
    run("evaluate", "recipe", "validation.h5")
    assert open_dataset(folder / "validation.h5").annotators.tolist() == [1, 1]
