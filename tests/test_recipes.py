"""The recipes that are shipped: what their headers say, and that each one trains, stops and goes on."""

import ctypes
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from conftest import new_run

from contrails.cli.main import cli
from contrails.cli.train.train import _DEBUG
from contrails.errors import Stopped
from contrails.models.names import require_known
from contrails.recipe.recipe import Recipe, load_recipe
from contrails.train.fold import train_fold
from contrails.train.loop import Loop
from contrails.train.optim import course_of

from raw_records import write_record

JOBS = Path(__file__).parents[1] / "jobs"
RECIPES = sorted(JOBS.glob("*.toml"))
OF_GOES = [path for path in RECIPES if "data/goes/" in path.read_text() or path.stem == "default"]

pytestmark = pytest.mark.usefixtures("restore_process")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve records of 64 x 64 with all bands and frames, and two folds."""
    root = tmp_path_factory.mktemp("goes")
    for index in range(12):
        write_record(root / "raw", "train", f"{index}", size=64, bands=range(8, 17), seed=index, positive=index % 3 < 2)
    train = str(root / "train.h5")
    cli(["prepare", str(root / "raw"), train, "--bands", "all", "--frames", "0-7"], standalone_mode=False)
    cli(["split", train, "--folds", "2", "-o", str(root / "folds.csv")], standalone_mode=False)
    return root


@pytest.fixture(autouse=True)
def give_memory_back() -> Iterator[None]:
    """The C library keeps what large models have freed: gigabytes, which other tests of this process would lack."""
    yield
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def small(path: Path, folder: Path) -> Recipe:
    """Return a recipe for two steps of two records of 64 x 64, with its own model, loss and schedule."""
    values = load_recipe(path).model_dump(mode="json", exclude_none=True)
    values["data"] |= {"dataset": str(folder / "train.h5"), "filelist": str(folder / "folds.csv"), "limit": 4}
    values["train"] |= {
        "batch_size": 2,
        "accumulate": 1,
        "epochs": 1,
        "swa_epochs": min(1, values["train"]["swa_epochs"]),
    }
    for duration in ("steps", "warmup_epochs", "warmup_steps"):
        values["train"].pop(duration, None)
    values["snapshot"] |= {"keep_last": 1, "keep_best": 1}
    if "size" in values["data"]:
        values["data"]["size"] = 64
    values["model"].pop("pretrained", None)
    return Recipe.model_validate(values)


def test_the_recipe_of_the_paper_has_its_steps_whatever_the_fold() -> None:
    train = load_recipe(JOBS / "paper_sgd.toml").train
    for per_epoch in (3, 64, 80):
        course = course_of(train, per_epoch)
        assert (course.steps, course.warmup) == (10_000, 500)
    assert (train.grad_clip, train.decay_on) == (0, "all")


def test_a_look_at_a_long_recipe_is_short() -> None:
    train = load_recipe(JOBS / "paper_sgd.toml", _DEBUG).train
    assert (course_of(train, 1).steps, course_of(train, 1).warmup, train.accumulate) == (2, 1, 1)


def stop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Loop._step

    def step(loop: Loop, batches: Any) -> None:
        original(loop, batches)
        loop.stop.reason = "SIGTERM"

    monkeypatch.setattr(Loop, "_step", step)


@pytest.mark.parametrize("path", OF_GOES, ids=lambda path: path.stem)
def test_two_steps_and_a_resume(path: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = new_run(tmp_path / "run", small(path, folder))
    fold = run.fold("0")
    with monkeypatch.context() as patch, pytest.raises(Stopped, match="stopped at step 1 "):
        stop_once(patch)
        train_fold(fold)
    train_fold(fold)
    done = fold.read_done()
    assert done is not None
    assert (done["step"], done["attempt"]) == (2, 2)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_header_says_what_to_expect(path: Path) -> None:
    require_known(load_recipe(path))
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("command", "needs", "score"):
        assert any(line.startswith(f"# {word}:") for line in header), f"{path} has no line '# {word}:'"
    quotes = re.search("# score:.*(published|private test)", "\n".join(header))
    assert quotes is None or any(line.startswith("# differs:") for line in header), f"{path} quotes a public score"


@pytest.mark.parametrize("path", OF_GOES, ids=lambda path: path.stem)
def test_the_header_has_the_size_of_the_model(path: Path) -> None:
    found = re.search(
        r"# model:   (\S+) M parameters, (\S+) G multiply-adds per record of (\d+) x \3 ", path.read_text()
    )
    assert found is not None
    parameters, macs, side = found.groups()
    done = CliRunner().invoke(cli, ["recipe", "show", str(path), "--model", "--json", "--side", side])
    assert done.exit_code == 0, done.output
    size = json.loads(done.stdout)
    assert (f"{size['parameters'] / 1e6:.1f}", f"{size['macs'] / 1e9:.1f}") == (parameters, macs)
