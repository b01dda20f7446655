"""What all tests share: real records where they are, a tiny dataset, and runs on it."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from contrails.cluster.queue.freeze import freeze_code
from contrails.dataset.store import Dataset, open_dataset
from contrails.files import sha256, write_atomic
from contrails.folds.filelists import read_filelist
from contrails.recipe.recipe import Recipe, to_toml
from contrails.runs.config import ComputeSection, DataIdentity, RunConfig
from contrails.runs.folder import Run

from raw_records import write_metadata, write_record

if TYPE_CHECKING:
    import torch

    from slurm_cluster import SlurmCluster

os.environ.pop("CONTRAILS_RUNS", None)  # somebody's own runs are none of the tests'
os.environ.pop("COLUMNS", None)  # nor is the width of the terminal, which xdist hands on: tables follow it

# fixtures of tests that start PBS jobs, replay a scheduler, fill a disk, or talk to a W&B server
pytest_plugins = ["pbs_site", "replayed", "small_disk", "wandb_fixtures"]

MakeRun = Callable[..., Run]
MakeRecipe = Callable[..., Recipe]

TINY_MODEL = {"encoder": "tu-test_resnet", "encoder_depth": 3, "decoder_channels": [16, 8, 8]}


class _ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """Each file's tests run in one process; those that wait for the one Slurm of a machine run in the same."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        name = Path(file).stem
        if name.startswith("test_slurm_"):
            return "slurm"
        return f"{name} {'[on' in test}" if name == "test_openpbs_runs" else file  # a server each


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return _ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest: at the end it would run alone."""
    items.sort(key=lambda item: not item.path.stem.startswith(("test_slurm_", "test_openpbs_runs")))


@pytest.fixture
def own_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give back the streams that `main` of the command line opens in their place."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with a few real OpenContrails records; it lies beside the clone where somebody put it."""
    path = Path(__file__).parents[2] / "shared" / "data" / "opencontrails"
    if not path.is_dir():
        pytest.skip(f"no real records at {path}: the same is tested on synthetic ones")
    return path


@pytest.fixture(scope="session")
def gpu() -> "torch.device":
    """The first GPU, where the machine has one."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as jobs have it; read before the first product
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.h5 (12 records of 32x32, half of them positive), three.csv (three folds) and test.h5."""
    from contrails.cli.main import cli

    root = tmp_path_factory.mktemp("tiny")
    for index in range(12):
        write_record(root / "raw", "train", f"{1000 + index}", size=32, seed=index, positive=index % 2 == 0)
    for index in range(3):
        write_record(root / "raw", "test", f"{2000 + index}", seed=100 + index, annotators=0, pixel_mask=False)
    for arguments in (
        ["prepare", str(root / "raw"), str(root / "train.h5")],
        ["prepare", str(root / "raw"), str(root / "test.h5"), "--split", "test"],
        ["split", str(root / "train.h5"), "--folds", "3", "-o", str(root / "three.csv")],
    ):
        cli(arguments, standalone_mode=False)
    return root


@pytest.fixture(scope="module")
def cluster() -> Iterator["SlurmCluster"]:
    """A real Slurm cluster on this machine, where it can have one."""
    from slurm_cluster import why_not
    from slurm_site import only_cluster

    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    with only_cluster() as cluster:
        cluster.start()
        yield cluster


def new_run(path: Path, recipe: Recipe) -> Run:
    """Create a run of a recipe that trains here on one thread."""
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
    run = Run(path)
    run.create_folder()
    write_atomic(run.toml, to_toml(config))
    return run


def freeze(run: Run) -> None:
    """Freeze the code of today in a run, as a submission does."""
    write_atomic(run.toml, to_toml(run.read_config().model_copy(update={"code": freeze_code(run)})))


@pytest.fixture
def make_run(tiny_data: Path, tmp_path: Path) -> MakeRun:
    """Create a run of a tiny model; keyword arguments are tables of the recipe."""

    def make(name: str = "run", **tables: dict[str, Any]) -> Run:
        values: dict[str, Any] = {
            "data": {"dataset": str(tiny_data / "train.h5"), "filelist": str(tiny_data / "three.csv")},
            "model": TINY_MODEL,
            "train": {"epochs": 3, "batch_size": 2, "lr": 3e-3, "log_every": 2},
        }
        for table, entries in tables.items():
            values[table] = values.get(table, {}) | entries
        return new_run(tmp_path / name, Recipe.model_validate(values))

    return make


@pytest.fixture
def aggregated(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory, restore_process: None) -> Run:
    """A run with three finished folds and their aggregation, made once and copied."""
    from contrails.cli.main import cli
    from contrails.train.fold import train_fold

    run, once = make_run("Läufe & <b>"), tmp_path_factory.getbasetemp() / "aggregated"
    if not once.exists():
        for key in ("0", "1", "2"):
            train_fold(run.fold(key))
        cli(["aggregate", str(run.path), "--weights", "best"], standalone_mode=False)
        shutil.copytree(run.path, once)
    else:
        shutil.copytree(once, run.path, dirs_exist_ok=True)
    return run


@pytest.fixture
def restore_process() -> Iterator[None]:
    """Undo what training does to its process: signal handlers, threads, deterministic kernels."""
    import torch

    from contrails.train.stop import SIGNALS

    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    threads, environment = torch.get_num_threads(), dict(os.environ)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture(scope="session")
def framed_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine records of 64x64 with the frames 2 to 5: every third is positive, the first six show one tile."""
    from contrails.cli.main import cli

    root = tmp_path_factory.mktemp("framed")
    for index in range(9):
        write_record(root / "raw", "train", f"{1000 + index}", size=64, seed=index, positive=index % 3 == 0)
    entries = [
        {"record_id": f"{1000 + index}", "tile": f"tile{max(0, index - 5)}", "timestamp": 1e9 + index}
        for index in range(9)
    ]
    write_metadata(root / "raw", "train", entries)
    cli(["prepare", str(root / "raw"), str(root / "train.h5"), "--frames", "2-5"], standalone_mode=False)
    return root / "train.h5"


@pytest.fixture
def framed(framed_path: Path) -> Dataset:
    return open_dataset(framed_path)


@pytest.fixture
def recipe_with() -> MakeRecipe:
    """Make a recipe; keyword arguments are its tables."""

    def make(**tables: dict[str, Any]) -> Recipe:
        data = {"dataset": "unused.h5", "filelist": "unused.csv"} | tables.pop("data", {})
        return Recipe.model_validate({"data": data, **tables})

    return make
