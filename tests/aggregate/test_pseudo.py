"""Pseudo-labels: whose they are, what they are of, and how a run trains with them."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeRun

from contrails.aggregate.assemble import make_ensemble
from contrails.aggregate.ensemble import Ensemble
from contrails.aggregate.members.members import load_member
from contrails.aggregate.options import Options
from contrails.cli.main import cli
from contrails.cluster.schedulers.sites import Site
from contrails.cluster.submit.create import create_run
from contrails.dataset.store import open_dataset
from contrails.errors import DataError, RecipeError, RunError, Stopped
from contrails.files import write_atomic
from contrails.folds.filelists import FileList, read_filelist, write_filelist
from contrails.folds.pseudo import ANNOTATORS, all_pseudo, open_pseudo, pseudo_path, weights_of, with_pseudo
from contrails.inputs.batches import in_order, source_of
from contrails.inputs.composites import Composite, channels_named
from contrails.models.about import read_about
from contrails.recipe.recipe import to_toml
from contrails.runs.folder import Fold, Run
from contrails.train.fold import train_fold
from contrails.train.fold_data import add_pseudo, training_rows
from contrails.train.loop import Loop

from raw_records import write_metadata, write_record

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("restore_process")

LABELLED = {"0": 0, "1": 0, "2": 0, "3": 1, "4": 1, "5": 1, "6": -1, "7": -2}
"""Folds of the labelled records."""

UNLABELLED = {"u0": "0", "u3": "3", "u6": "6", "u9": "9"}
"""Places of the unlabelled records: with record 0, with record 3, with the held-out one, and alone."""

LATER = {"later": "0"}
"""Unlabelled, where record 0 is, two days later."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with train.h5 and rest.h5, frames 3 to 5, and two.csv: two folds, one held out, one always trained."""
    root = tmp_path_factory.mktemp("pseudo")
    for seed, name in enumerate(LABELLED):
        write_record(root / "raw", "train", name, seed=seed, positive=seed % 2 == 0)
    for seed, name in enumerate(UNLABELLED | LATER):
        write_record(root / "raw", "test", name, seed=50 + seed, annotators=0, pixel_mask=False)
    for split, name, places in (("train", "train", {n: n for n in LABELLED}), ("test", "rest", UNLABELLED | LATER)):
        times = {record_id: 1e9 + 48 * 3600 * (record_id == "later") for record_id in places}
        entries = [{"record_id": n, "tile": place, "timestamp": times[n]} for n, place in places.items()]
        write_metadata(root / "raw", split, entries)
        arguments = ["prepare", str(root / "raw"), str(root / f"{name}.h5"), "--split", split, "--frames", "3-5"]
        cli(arguments, standalone_mode=False)
    write_filelist(root / "two.csv", FileList(tuple(LABELLED), tuple(LABELLED), tuple(LABELLED.values())), "by hand")
    return root


@pytest.fixture
def trained(make_run: MakeRun, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Ensemble:
    """An ensemble of two folds, trained once and copied."""
    once = tmp_path_factory.getbasetemp() / "pseudo_run"
    run = make_run("maker", data=paths(data), train={"epochs": 1})
    if not once.exists():
        for fold in "01":
            train_fold(run.fold(fold))
        shutil.copytree(run.path / "folds", once)
    shutil.copytree(once, run.path / "folds", dirs_exist_ok=True)
    return make_ensemble([run], run.aggregate("default"), Options(weights="best"), CPU)


def paths(data: Path) -> dict[str, Any]:
    return {"dataset": str(data / "train.h5"), "filelist": str(data / "two.csv")}


def write(ensemble: Ensemble, data: Path, *options: str, name: str = "rest") -> Path:
    folder = ensemble.path / "pseudo"
    command = ["predict", str(ensemble.path), str(data / f"{name}.h5"), str(folder), "--format", "pseudo", *options]
    cli(command, standalone_mode=False)
    return folder


def user(make_run: MakeRun, data: Path, folder: Path, weight: float = 0.5, name: str = "user") -> Run:
    """A run that trains with pseudo-labels, with their fingerprints frozen as a submission does."""
    section = {"folder": str(folder), "run": "maker", "weight": weight}
    run = make_run(name, data=paths(data) | {"pseudo": [section]}, train={"epochs": 2})
    config = run.read_config()
    identity = all_pseudo(config.recipe, 2, open_dataset(data / "train.h5"), config.data.filelist)
    assert len(identity) == 2
    frozen = config.data.model_copy(update={"pseudo": identity})
    write_atomic(run.toml, to_toml(config.model_copy(update={"data": frozen})))
    return run


def digests(fold: Fold) -> dict[str, str]:
    done = fold.read_done()
    assert done is not None
    return {name: entry["sha256"] for name, entry in done["weights"].items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # other frames of what the fold trains on: nothing of its validation records, nor of the held-out one
        ("train", {"0": {"3@3", "4@3", "5@3", "7@3"}, "1": {"0@3", "1@3", "2@3", "7@3"}}),
        # without a label: nothing that shares place and day with one of these
        ("rest", {"0": {"u3", "u9", "later"}, "1": {"u0", "u9", "later"}}),
    ],
)
def test_a_fold_gets_what_it_may_see_from_its_own_member(
    trained: Ensemble, data: Path, name: str, expected: dict[str, set[str]]
) -> None:
    folder = write(trained, data, "--frames", "3,4", name=name)
    source = open_dataset(data / f"{name}.h5")
    for fold, member in zip("01", trained.members, strict=True):
        found = open_dataset(pseudo_path(folder, fold))
        both_frames = {f"{record}@{frame}" for record in expected[fold] for frame in (3, 4)}
        assert set(found.record_ids) == (expected[fold] if name == "train" else both_frames)
        assert found.frames == (4,)
        assert found.label_offset_px == (0.5, 0.5)
        assert set(found.annotators) == {ANNOTATORS}
        model, _ = load_member(trained.path / member.file, source, CPU)
        for row, (record, frame) in enumerate(record_id.split("@") for record_id in found.record_ids):
            bands = source.bands[source.record_ids.index(record), source.frames.index(int(frame))]
            assert np.array_equal(found.bands[row, 0], bands)
            b11, b14, b15 = bands.astype(np.float32) * 0.01 + 273.15
            ash = np.stack([(b15 - b14 + 4) / 6, (b14 - b11 + 4) / 9, (b14 - 243) / 60]).clip(0, 1)
            with torch.inference_mode():
                probs = torch.sigmoid(model(torch.from_numpy(ash)[None]).mask)[0].numpy()
            assert np.abs(found.votes[row] / ANNOTATORS - probs).max() < 0.51 / ANNOTATORS + 1e-4


def test_again_nothing_is_done_and_another_making_is_refused(trained: Ensemble, data: Path) -> None:
    folder = write(trained, data)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(before) == {"fold0.h5", "fold1.h5"}
    write(trained, data)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    with pytest.raises(DataError, match=r"fold0.h5 exists and was made differently; .* give another folder"):
        write(trained, data, "--frames", "3")


def test_what_cannot_be_labelled_is_told(trained: Ensemble, data: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"--frames 7: the members use the frames \[4\] .* frames \[7\] are needed too"
    ):
        write(trained, data, "--frames", "7")
    several = replace(trained.members[0], run="other")
    with pytest.raises(RunError, match="expected single folds of one run, found runs maker, other"):
        next(labels_of(replace(trained, members=(*trained.members, several)), data))
    with pytest.raises(
        DataError, match=r"fold 0: expected records to pseudo-label in \S+, found none: all are labelled"
    ):
        write(trained, data, name="train")


def labels_of(ensemble: Ensemble, data: Path) -> Any:
    from contrails.aggregate.output.pseudo import write_pseudo_labels

    return write_pseudo_labels(ensemble, open_dataset(data / "rest.h5"), ensemble.path / "pseudo", (), CPU)


def test_a_run_trains_with_its_own_and_ends_in_the_same_bits_after_a_stop(
    trained: Ensemble, data: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(trained, data, "--frames", "3,4")
    undisturbed, stopped, full = (
        user(make_run, data, folder, weight, name) for name, weight in (("a", 0.5), ("b", 0.5), ("c", 1.0))
    )
    for run in (undisturbed, full):
        train_fold(run.fold("0"))
    done = undisturbed.fold("0").read_done()
    assert done is not None
    # 3, 4, 5 and 7 of the dataset, and three pseudo-labelled ones in two frames each, two at a time
    assert done["step"] == 2 * (4 + 6) // 2
    original = Loop._step

    def step_and_signal(loop: Loop, batches: Any) -> None:
        original(loop, batches)
        if loop.state.step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", step_and_signal)
        with pytest.raises(Stopped, match="stopped at step 5"):
            train_fold(stopped.fold("0"))
    train_fold(stopped.fold("0"))
    assert digests(stopped.fold("0")) == digests(undisturbed.fold("0"))
    assert digests(full.fold("0")) != digests(undisturbed.fold("0"))
    about = read_about(undisturbed.fold("0").weights / done["weights"]["final"]["file"])
    assert about["recipe"]["data"]["pseudo"][0]["run"] == "maker"
    make_ensemble([undisturbed], undisturbed.aggregate("default"), Options(weights="best"), CPU)


def test_positives_only_is_of_pseudo_labels_too(trained: Ensemble, data: Path, make_run: MakeRun) -> None:
    run = user(make_run, data, write(trained, data, "--frames", "3,4"))
    config = run.read_config()
    chosen = config.recipe.data.model_copy(update={"positives_only": True})
    dataset, other = open_dataset(data / "train.h5"), open_dataset(pseudo_path(trained.path / "pseudo", "0"))
    recipe = config.recipe.model_copy(update={"data": chosen})
    training, _ = training_rows(dataset, read_filelist(data / "two.csv"), "0", recipe)
    assert [dataset.record_ids[row] for row in training] == ["4"]
    votes = other.votes.copy()
    votes[:] = 0
    votes[2, 5, 5] = ANNOTATORS // 2 + 1
    votes[3, 5, 5] = ANNOTATORS // 2
    mixed, _, rows = add_pseudo(chosen, dataset, training, [replace(other, votes=votes)])
    assert [mixed.record_ids[row] for row in rows] == ["4", other.record_ids[2]]


def test_files_that_changed_since_submission_are_refused(trained: Ensemble, data: Path, make_run: MakeRun) -> None:
    run = user(make_run, data, write(trained, data))
    pseudo_path(trained.path / "pseudo", "0").unlink()
    pseudo_path(trained.path / "pseudo", "1").unlink()
    write(trained, data, "--frames", "3")
    with pytest.raises(DataError, match=r"the pseudo-labels \S+fold0.h5 is not the one this run was made for"):
        train_fold(run.fold("0"))


def test_labels_of_another_member_or_run_are_refused_at_submission(
    trained: Ensemble, data: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONTRAILS_RUNS", str(tmp_path / "runs"))
    folder, site = write(trained, data), Site(name="local", device="cpu")
    recipe = user(make_run, data, folder).read_config().recipe

    def submit(**section: Any) -> None:
        pseudo = (recipe.data.pseudo[0].model_copy(update=section),)
        create_run(
            recipe.model_copy(update={"data": recipe.data.model_copy(update={"pseudo": pseudo})}), site, "new", ["0"]
        )

    with pytest.raises(DataError, match=r"expected the pseudo-labels of fold 0 at .*, found none"):
        submit(folder=tmp_path / "nowhere")
    with pytest.raises(
        DataError, match=r"expected pseudo-labels made by run other, fold 0, .* found run maker, fold 0"
    ):
        submit(run="other")
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    shutil.copy(pseudo_path(folder, "1"), pseudo_path(swapped, "0"))
    with pytest.raises(
        DataError, match=r"expected pseudo-labels made by run maker, fold 0, .*, found run maker, fold 1"
    ):
        submit(folder=swapped)
    shutil.copy(data / "train.h5", pseudo_path(swapped, "0"))
    with pytest.raises(DataError, match="found another kind of file"):
        submit(folder=swapped)
    assert not (tmp_path / "runs" / "new").exists()
    with pytest.raises(DataError, match=r"found run maker, fold 0, filelist [0-9a-f]{64}"):
        open_pseudo(recipe.data.pseudo[0], "0", open_dataset(data / "train.h5"), "0" * 64)


def test_mixed_batches_are_those_of_their_files(trained: Ensemble, data: Path, make_run: MakeRun) -> None:
    folder, dataset = write(trained, data, "--frames", "3,4"), open_dataset(data / "train.h5")
    sections = user(make_run, data, folder).read_config().recipe.data.pseudo
    other = open_dataset(pseudo_path(folder, "0"))
    mixed = with_pseudo(dataset, [other], ())
    recipe = make_run("plain", data=paths(data)).read_config().recipe
    composite = Composite(channels_named("ash", dataset.band_names))
    weights = weights_of(dataset, sections, [other])
    source = replace(source_of(mixed, recipe, composite, CPU), weights=weights)
    alone = [next(in_order(source_of(each, recipe, composite, CPU), np.array([2, 5]), 2)) for each in (dataset, other)]
    rows = np.array([2, dataset.num_records + 5, dataset.num_records + 2, 5])
    batch = next(in_order(source, rows, 4))
    assert batch.weights is not None
    assert batch.weights.tolist() == [1.0, 0.5, 0.5, 1.0]
    for name in ("inputs", "target", "valid"):
        labelled, pseudo = (getattr(each, name) for each in alone)
        assert torch.equal(getattr(batch, name), torch.stack([labelled[0], pseudo[1], pseudo[0], labelled[1]]))
    assert len(np.unique(alone[1].target)) > 2  # soft
    assert next(in_order(source_of(dataset, recipe, composite, CPU), rows[:1], 1)).weights is None
