"""A disk that fills at any moment: one line of message, nothing half-done, and the same command goes on."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import click
import pytest
from conftest import MakeRun
from small_disk import SmallDisk

from contrails.cli.main import cli
from contrails.cluster.schedulers.sites import find_site
from contrails.cluster.submit.create import create_run, refreeze
from contrails.errors import StorageError
from contrails.runs.folder import Run
from contrails.train.fold import train_fold

pytestmark = pytest.mark.usefixtures("restore_process")


def contrails(*arguments: object) -> None:
    cli([str(argument) for argument in arguments], standalone_mode=False)


def contents(folder: Path) -> dict[str, str]:
    """Return the digests of what lies in a folder."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def fill_and_go_on(disk: SmallDisk, steps_kib: Sequence[int], command: Sequence[object], kept: Sequence[str]) -> None:
    """Run a command with so little room left that it fails, each time with more, then with enough.

    What it leaves behind is `kept` to go on from, and is gone in the end.
    """
    for kib in steps_kib:
        disk.leave(kib)
        with pytest.raises(StorageError) as caught:
            contrails(*command)
        assert re.search(r"(No space left on device|the written file cannot be read); check the", str(caught.value))
        assert "\n" not in str(caught.value)
        assert not [name for name in disk.files() if name.endswith(".tmp")]
        assert all(name.startswith(tuple(kept)) for name in disk.files()), disk.files()
    disk.clear()
    contrails(*command)


@pytest.fixture
def out(small_disk: SmallDisk) -> Path:
    return small_disk.path / "out"


def test_prepare_and_join(tiny_data: Path, small_disk: SmallDisk, out: Path) -> None:
    raw = tiny_data / "raw"
    command = ("prepare", raw, out / "train.h5", "--workers", "1")
    fill_and_go_on(small_disk, (0, 4, 12, 20, 32), command, ["out/.train.h5."])
    assert small_disk.files() == {"out/train.h5"}
    assert (out / "train.h5").read_bytes() == (tiny_data / "train.h5").read_bytes()
    (out / "train.h5").unlink()
    for shard in ("1/2", "2/2"):
        contrails("prepare", raw, out / "train.h5", "--workers", "1", "--shard", shard)
    fill_and_go_on(small_disk, (0, 4, 12, 20, 100), ("data", "join", out / "train.h5"), ["out/train-"])
    assert (out / "train.h5").read_bytes() == (tiny_data / "train.h5").read_bytes()


@pytest.mark.parametrize("layout", ["goes", "scenes", "images-rle"])
def test_demo(small_disk: SmallDisk, out: Path, tmp_path: Path, layout: str) -> None:
    options = ("--layout", layout, "--train", "1", "--validation", "1", "--test", "1", "--size", "32")
    fill_and_go_on(small_disk, (0, 4, 8, 12), ("demo", out, *options), ["out/"])
    contrails("demo", tmp_path / "undisturbed", *options)
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_small_files(tiny_data: Path, small_disk: SmallDisk, out: Path) -> None:
    train = tiny_data / "train.h5"
    for command in (
        ("split", train, "--folds", "2", "-o", out / "two.csv"),
        ("data", "audit", train, "-o", out),
        ("data", "info", train, "--plot", small_disk.path / "picture.png"),
    ):
        fill_and_go_on(small_disk, (0,), command, ["out/", "picture.png"])
    assert small_disk.files() == {"out/two.csv", "out/audit.html", "out/exclude.csv", "picture.png"}


def test_code_is_frozen_whole_or_not_at_all(
    make_run: MakeRun, small_disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_run().read_config().recipe
    monkeypatch.setenv("CONTRAILS_RUNS", str(small_disk.path))
    for kib in (0, 8, 400):
        small_disk.leave(kib)
        with pytest.raises(StorageError, match=r"^cannot write \S+/new/code: No space left on device; check the free"):
            create_run(recipe, find_site("local"), "new")
        assert small_disk.files() == set()
    small_disk.clear()
    run, config = create_run(recipe, find_site("local"), "new")
    before = contents(run.path)
    small_disk.leave(8)
    with pytest.raises(StorageError, match="No space left on device"):
        refreeze(run, config)
    assert contents(run.path) == before
    small_disk.clear()
    assert refreeze(run, config) == config


def test_aggregation(aggregated: Run, small_disk: SmallDisk, out: Path, tiny_data: Path, tmp_path: Path) -> None:
    command = ("aggregate", aggregated.path, "--data", tiny_data / "test.h5", "-o", out)
    contrails(*command[:-1], tmp_path / "undisturbed")
    needed = sum(path.stat().st_size for path in (tmp_path / "undisturbed").rglob("*") if path.is_file()) // 1024
    fill_and_go_on(small_disk, (0, needed // 4, needed // 4), command, ["out/"])
    left_out = {"ensemble.json"}  # names its own folder
    whole = contents(tmp_path / "undisturbed")
    assert {name: digest for name, digest in contents(out).items() if name not in left_out} == {
        name: digest for name, digest in whole.items() if name not in left_out
    }


def test_predictions_scores_reports_and_notes(
    aggregated: Run, small_disk: SmallDisk, out: Path, tiny_data: Path, tmp_path: Path
) -> None:
    test = tiny_data / "test.h5"
    for kind, name, steps_kib in (
        ("submission", "submission.csv", (0, 12)),
        ("npy", "arrays", (0, 4)),
        ("png", "pictures", (0, 4)),
        ("tif", "scenes", (0, 4, 8)),
        ("probabilities", "probabilities.h5", (0, 12)),
    ):
        command = ("predict", aggregated.path, test, out / name, "--format", kind)
        fill_and_go_on(small_disk, steps_kib, command, ["out/"])
        contrails(*command[:3], tmp_path / name, *command[4:])
        assert (out / name).exists()
    with pytest.raises(click.BadParameter, match="/arrays is a folder; give the name of a file in it"):
        contrails("predict", aggregated.path, test, out / "arrays", "--format", "submission")
    for path in out.iterdir():
        if path.is_dir() and not path.name.startswith("."):
            assert contents(path) == contents(tmp_path / path.name)
    fill_and_go_on(small_disk, (0,), ("report", aggregated.path, "-o", out / "report.html"), ["out/"])


def test_weights_of_an_epoch(make_run: MakeRun, small_disk: SmallDisk) -> None:
    undisturbed = make_run("undisturbed").fold("0")
    train_fold(undisturbed)
    fold = make_run("disk/full").fold("0")
    for kib in (100, 300, 700):
        small_disk.leave(kib)
        with pytest.raises(StorageError, match=r"^cannot write \S+: No space left on device; check the free space"):
            train_fold(fold)
        assert not [name for name in small_disk.files() if name.endswith(".tmp")]
    small_disk.clear()
    train_fold(fold)
    done, expected = fold.read_done(), undisturbed.read_done()
    assert done is not None
    assert expected is not None
    assert [entry["sha256"] for entry in done["weights"].values()] == [
        entry["sha256"] for entry in expected["weights"].values()
    ]
