"""A tiny dataset and runs on it, shared by the tests of training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contrails.cli.main import cli
from contrails.config import ComputeSection, DataIdentity, Recipe, RunConfig, to_toml
from contrails.data.filelists import read_filelist
from contrails.data.store import open_dataset
from contrails.files import sha256, write_atomic
from contrails.runs import Run

from raw_records import write_record

MakeRun = Callable[..., Run]


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.h5 (12 records of 32x32, half of them positive) and three.csv (three folds)."""
    root = tmp_path_factory.mktemp("tiny")
    for index in range(12):
        write_record(root / "raw", "train", f"{1000 + index}", size=32, seed=index, positive=index % 2 == 0)
    cli(["prepare", str(root / "raw"), str(root / "train.h5")], standalone_mode=False)
    cli(["split", str(root / "train.h5"), "--folds", "3", "-o", str(root / "three.csv")], standalone_mode=False)
    return root


@pytest.fixture
def make_run(tiny_data: Path, tmp_path: Path) -> MakeRun:
    """Create a run of a tiny model; keyword arguments are tables of the recipe."""

    def make(name: str = "run", **tables: dict[str, Any]) -> Run:
        values: dict[str, Any] = {
            "data": {"dataset": str(tiny_data / "train.h5"), "filelist": str(tiny_data / "three.csv")},
            "model": {"encoder": "tu-test_resnet", "encoder_depth": 3, "decoder_channels": [16, 8, 8]},
            "train": {"epochs": 3, "batch_size": 2, "lr": 3e-3, "log_every": 2},
        }
        for table, entries in tables.items():
            values[table] = values.get(table, {}) | entries
        recipe = Recipe.model_validate(values)
        config = RunConfig(
            recipe=recipe,
            compute=ComputeSection(device="cpu", num_threads=1),
            data=DataIdentity(
                dataset=open_dataset(recipe.data.dataset).fingerprint,
                filelist=sha256(recipe.data.filelist),
                num_folds=read_filelist(recipe.data.filelist).num_folds,
            ),
            site={"name": "local"},
            code="",
        )
        run = Run(tmp_path / name)
        run.create_folder()
        write_atomic(run.toml, to_toml(config))
        return run

    return make
