"""`contrails continue` and `contrails resume`: what a run starts from, and where and with what it goes on."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contrails.cluster.status.exact import differences
from contrails.files import read_json, to_json, write_atomic
from contrails.runs.folder import Fold, Run
from contrails.train.attempt import claim_attempt
from contrails.train.context import JobContext
from contrails.train.fold import train_fold

from local_site import Site, eventually

LONG = ("-o", "train.epochs=400")


@pytest.fixture
def site(tmp_path: Path, tiny_data: Path) -> Iterator[Site]:
    site = Site(tmp_path, tiny_data)
    yield site
    site.end_everything()


def finish(site: Site, *arguments: str) -> None:
    done = site.run("submit", "tiny.toml", *arguments, "--wait")
    assert done.returncode == 0, done.stderr


def test_a_run_continues_from_the_same_folds_of_another(site: Site) -> None:
    finish(site, "--fold", "0,1", "-o", "train.epochs=1", "-o", "train.ema_decay=0.5")
    begun = site.run("continue", "tiny", "--from", "ema", "-o", "train.epochs=2", "-o", "data.composite=bands")
    assert begun.returncode == 0, begun.stderr
    new = Run(site.root / "runs" / "tiny-continued")
    eventually(lambda: all(new.fold(key).done.exists() for key in "01"))
    config, parent = new.read_config(), site.fold("0").read_done()
    assert parent is not None
    assert config.lineage["0"].sha256 == parent["weights"]["ema"]["sha256"]
    assert (config.recipe.train.epochs, config.recipe.data.composite) == (2, "bands")
    assert [fold.key for fold in new.folds()] == ["0", "1"]
    assert "starting from" in new.fold("0").attempt(1).stderr.read_text()
    again = site.run("submit", "tiny.toml", "--name", "fresh", "--fold", "0", "--wait", "-o", "data.composite=bands",
                     "-o", "train.epochs=2", "-o", "train.ema_decay=0.5")  # fmt: skip
    assert again.returncode == 0, again.stderr
    fresh, continued = site.fold("0", "fresh").read_done(), new.fold("0").read_done()
    assert fresh is not None
    assert continued is not None
    assert fresh["weights"]["final"]["sha256"] != continued["weights"]["final"]["sha256"]


def test_another_channel_count_loads_what_fits_and_names_the_rest(site: Site) -> None:
    finish(site, "--fold", "0", "-o", "train.epochs=1")
    begun = site.run("continue", "tiny", "--from", "last", "-o", 'data.composite=["b14", "b15"]')
    assert begun.returncode == 0, begun.stderr
    fold = site.fold("0", "tiny-continued")
    eventually(fold.done.exists)
    log = fold.attempt(1).stderr.read_text()
    assert "1 tensors do not fit: model.encoder.model.conv1.0.weight (" in log
    assert "new" not in log
    assert "3, 3, 3) there" in log


def test_a_2d_run_continues_with_merged_frames(site: Site) -> None:
    finish(site, "--fold", "0", "-o", "train.epochs=1")
    # the tiny dataset has one frame: it stands for three
    begun = site.run("continue", "tiny", "-o", "data.frames=[4, 4, 4]", "-o", 'model.temporal.merge="conv3d"')
    assert begun.returncode == 0, begun.stderr
    fold = site.fold("0", "tiny-continued")
    eventually(fold.done.exists)
    (line,) = (line for line in fold.attempt(1).stderr.read_text().splitlines() if "starting from" in line)
    assert "do not fit" not in line
    _, _, names = line.partition(" are new in this model: ")
    assert names
    assert all(name.startswith("model.merge.") for name in names.split(", ")), line


def test_what_cannot_be_continued_is_refused(site: Site, tiny_data: Path) -> None:
    assert "expected a run called 'none'" in site.run("continue", "none").stderr
    finish(site, "--fold", "0", "-o", "train.epochs=1")
    other = site.run("split", str(tiny_data / "train.h5"), "--folds", "3", "--seed", "5", "-o", "other.csv")
    assert other.returncode == 0, other.stderr
    refused = site.run("continue", "tiny", "-o", "data.filelist=other.csv")
    assert refused.returncode == 5
    assert "expected the file list of tiny" in refused.stderr
    refused = site.run("continue", "tiny", "--from", "swa")
    assert "fold 0 of tiny has no weights 'swa'; Known: " in refused.stderr
    refused = site.run("continue", "tiny", "--fold", "0,1")
    assert "tiny had not finished the folds 1 when tiny-continued was made; give --fold 0" in refused.stderr


def test_weights_that_changed_since_are_refused(site: Site) -> None:
    finish(site, "--fold", "0", "-o", "train.epochs=1")
    done = site.fold("0").read_done()
    assert done is not None
    path = site.fold("0").weights / done["weights"]["best"]["file"]
    path.write_bytes(path.read_bytes()[:-1])
    assert site.run("continue", "tiny").returncode == 0
    state = site.wait_for("tiny-continued", "0", "failed")
    assert "has changed since the run was made" in state["reason"]


def test_resume_goes_on_with_what_is_not_finished(site: Site) -> None:
    finish(site, "--fold", "1", "-o", "train.epochs=1", "--name", "done")
    assert "done fold 1: done" in site.run("resume", "done").stdout
    assert site.run("submit", "tiny.toml", "--fold", "0", *LONG).returncode == 0
    fold = site.fold("0")
    site.wait_for_snapshot(fold)
    os.kill(read_json(fold.attempt(1).job)["pid"], signal.SIGTERM)
    stopped = site.wait_for("tiny", "0", "stopped")
    resumed = site.run("resume", "tiny", "--site", "local")
    assert "tiny fold 0: submitted" in resumed.stdout, resumed.stderr
    running = site.wait_for("tiny", "0", "running")
    assert running["attempt"] == 2
    assert running["differences"] == []
    assert "resuming at step " + str(stopped["step"]) in fold.attempt(2).stderr.read_text()
    busy = site.run("resume", "tiny", "--code", "current")
    assert busy.returncode == 5
    assert "its folds 0 are alive" in busy.stderr


def test_the_code_of_today_makes_a_run_inexact_and_says_so(site: Site) -> None:
    assert site.run("submit", "tiny.toml", "--fold", "0", *LONG).returncode == 0
    fold = site.fold("0")
    site.wait_for_snapshot(fold)
    os.kill(read_json(fold.attempt(1).job)["pid"], signal.SIGTERM)
    site.wait_for("tiny", "0", "stopped")
    with (site.package / "metrics.py").open("a") as file:
        file.write("# changed\n")
    assert site.run("resume", "tiny", "--code", "current").returncode == 0
    eventually(lambda: differences(fold))
    (difference,) = differences(fold)
    assert difference.startswith("attempt 2: code ")
    shown = site.run("status", "tiny").stdout
    assert "fold 0: not exact, attempt 2: code" in shown


@pytest.mark.usefixtures("restore_process")
def test_a_recipe_that_was_edited_under_way_makes_a_run_inexact(make_run: Callable[..., Run]) -> None:
    fold = make_run(train={"epochs": 1}).fold("0")
    for _ in range(2):
        train_fold(fold)
        assert differences(fold) == ()
        fold.done.unlink()  # there is more to do
    fold.run.toml.write_text(fold.run.toml.read_text().replace("epochs = 1", "epochs = 2"))
    train_fold(fold)
    (difference,) = differences(fold)
    assert difference.startswith("attempt 3: recipe ")


def test_differences_name_what_differs_of_attempts_that_trained(tmp_path: Path) -> None:
    fold = Fold(tmp_path / "run" / "folds" / "0")
    owners = [
        {"cpu": "A", "device": "cpu", "versions": {"torch": "2.9"}},
        {"cpu": "B", "device": "cpu", "versions": {"torch": "2.9"}},
        {"cpu": "A", "device": "cpu", "versions": {"torch": "3.0"}},
    ]
    for number, (owner, step) in enumerate(zip(owners, (4, 0, 9), strict=True), start=1):
        write_atomic(fold.attempt(number).job, to_json(owner))
        write_atomic(fold.attempt(number).state, to_json({"step": step}))
    assert differences(fold) == ("attempt 3: torch 3.0, was 2.9",)


def test_another_driver_is_a_difference_and_one_that_was_not_written_down_is_none(tmp_path: Path) -> None:
    for name, drivers, expected in (
        ("old", (None, "570.86.15"), ()),
        ("new", ("535.183.01", "570.86.15"), ("attempt 2: driver 570.86.15, was 535.183.01",)),
    ):
        fold = Fold(tmp_path / name / "folds" / "0")
        for number, driver in enumerate(drivers, start=1):
            owner = {"gpu": "A, CUDA 13.0"} | ({} if driver is None else {"driver": driver})
            write_atomic(fold.attempt(number).job, to_json(owner))
            write_atomic(fold.attempt(number).state, to_json({"step": 4}))
        assert differences(fold) == expected


def test_processors_of_one_name_differ_in_their_instructions(tmp_path: Path) -> None:
    fold = Fold(tmp_path / "run" / "folds" / "0")
    owners = [
        {"cpu": "virtual", "simd": "avx avx2 avx512f"},
        {"cpu": "virtual"},  # of a version that did not write them down
        {"cpu": "virtual", "simd": "avx avx2 fma"},
    ]
    for number, owner in enumerate(owners, start=1):
        write_atomic(fold.attempt(number).job, to_json(owner))
        write_atomic(fold.attempt(number).state, to_json({"step": number}))
    assert differences(fold) == ("attempt 3: simd avx512f fma on only one of the two machines",)


def test_an_attempt_says_what_vector_instructions_its_machine_has(tmp_path: Path) -> None:
    path = Path("/proc/cpuinfo")
    flags = set(path.read_text().split()) if path.exists() else set()
    attempt = claim_attempt(Fold(tmp_path / "run" / "folds" / "0"), JobContext(), {}, lambda: True)
    said = set(read_json(attempt.job)["simd"].split())
    assert said <= flags
    assert {"avx2", "avx512f", "asimd"} & said == {"avx2", "avx512f", "asimd"} & flags
