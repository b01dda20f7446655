"""The whole road as a user walks it, on real records and on the demo; and the wheel outside of the clone."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from contrails.dataset.rle import decode
from contrails.dataset.store import open_dataset

CLONE = Path(__file__).parents[1]
SMALL = {"encoder": "resnet18", "encoder_depth": 4, "decoder_channels": [64, 32, 32, 16]}


def contrails(folder: Path, *arguments: str) -> str:
    """Run a command in a folder and return its output; it must succeed."""
    command = [sys.executable, "-m", "contrails", *arguments]
    environment = dict(os.environ) | {"CONTRAILS_RUNS": str(folder / "runs")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write_recipe(folder: Path, **train: float) -> None:
    recipe = {"data": {"dataset": "train.h5", "filelist": "folds.csv"}, "model": SMALL, "train": train}
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe))


@pytest.mark.slow
def test_real_records_to_a_submission(real_data: Path, tmp_path: Path) -> None:
    contrails(tmp_path, "prepare", str(real_data), "train.h5")
    contrails(tmp_path, "prepare", str(real_data), "test.h5", "--split", "test")
    contrails(tmp_path, "split", "train.h5", "--folds", "3", "-o", "folds.csv")
    write_recipe(tmp_path, epochs=1, batch_size=2)
    contrails(tmp_path, "submit", "recipe.toml", "--folds", "3", "--wait")
    sample = str(real_data / "sample_submission.csv")
    answer = contrails(tmp_path, "aggregate", "recipe", "--data", "test.h5", "--sample", sample, "--json")
    rows = list(csv.DictReader(Path(json.loads(answer)["submission"]).read_text().splitlines()))
    assert [row["record_id"] for row in rows] == ["1000834164244036115", "1002653297254493116"]
    for row in rows:
        decode(row["encoded_pixels"], (256, 256))


@pytest.mark.slow
def test_a_small_unet_overfits_a_real_positive(real_data: Path, tmp_path: Path) -> None:
    contrails(tmp_path, "prepare", str(real_data), "train.h5")
    contrails(tmp_path, "split", "train.h5", "--folds", "3", "-o", "folds.csv")
    write_recipe(tmp_path, epochs=75, batch_size=1, lr=4e-3)
    keep = ("-o", "snapshot.keep_last=1", "-o", "snapshot.keep_best=1")
    contrails(tmp_path, "train", "recipe.toml", "--fold", "all", "--overfit", "1", "-o", "augment.dihedral=0", *keep)
    done = json.loads((tmp_path / "runs/recipe-overfit/folds/all/done.json").read_text())
    assert done["best_dice"] >= 0.8


@pytest.mark.slow
def test_the_demo_can_be_learned(tmp_path: Path) -> None:
    contrails(tmp_path, "demo", "raw", "--size", "96", "--train", "48", "--validation", "1", "--test", "1")
    contrails(tmp_path, "prepare", "raw", "train.h5")
    contrails(tmp_path, "split", "train.h5", "--folds", "3", "-o", "folds.csv")
    write_recipe(tmp_path, epochs=14, batch_size=8, lr=3e-3)
    contrails(tmp_path, "train", "recipe.toml", "--fold", "0")
    done = json.loads((tmp_path / "runs/recipe/folds/0/done.json").read_text())
    # all pixels called contrail would score 2p / (1 + p) with p the share of positive pixels
    dataset = open_dataset(tmp_path / "train.h5")
    share = float(dataset.positive_pixels(range(dataset.num_records)).sum() / np.prod(dataset.votes.shape))
    assert done["best_dice"] > max(0.3, 4 * 2 * share / (1 + share))


@pytest.mark.slow
def test_the_wheel_runs_outside_of_the_clone(tmp_path: Path) -> None:
    source = tmp_path / "source"  # setuptools leaves a build folder, which would outlive removed modules
    source.mkdir()
    for name in ("contrails", "setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (CLONE / name).is_dir() else shutil.copy
        copy(CLONE / name, source / name)
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("contrails_hpc-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)], check=True)
    environment = dict(os.environ) | {"PYTHONPATH": str(tmp_path / "site")}
    code = "import contrails, sys; print(contrails.__file__); from contrails.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "demo", "raw", "--size", "32", "--train", "1", "--test", "1"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(tmp_path / "site"))
    assert len(list((tmp_path / "raw" / "train").iterdir())) == 1
