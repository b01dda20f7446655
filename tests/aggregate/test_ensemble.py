"""From trained folds to an ensemble and a submission, on a tiny run."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contrails.aggregate.apply import predictor
from contrails.aggregate.assemble import make_ensemble, predict_shard
from contrails.aggregate.decide.postprocess import apply
from contrails.aggregate.ensemble import Ensemble, read_ensemble
from contrails.aggregate.members.members import load_member
from contrails.aggregate.options import Options
from contrails.cli.main import cli
from contrails.cli.results.figures import show_ensemble
from contrails.dataset.rle import decode
from contrails.dataset.store import Dataset, open_dataset
from contrails.errors import DataError, RecipeError, RunError
from contrails.files import read_json, sha256, to_json
from contrails.metrics import NUM_BINS
from contrails.models.weights import load_weights, save_weights
from contrails.runs.folder import Fold, Run
from contrails.train.fold import train_fold

from dataset_edits import flip_a_bit

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("restore_process")


BEST = Options(weights="best")


@pytest.fixture
def trained(make_run: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with three finished folds, trained once and copied."""
    run, once = make_run(train={"epochs": 2}), tmp_path_factory.getbasetemp() / "trained"
    if not once.exists():
        shutil.copytree(train(run).path / "folds", once)
    shutil.copytree(once, run.path / "folds", dirs_exist_ok=True)
    return run


def train(run: Run, *folds: str) -> Run:
    for fold in folds or ("0", "1", "2"):
        train_fold(run.fold(fold))
    return run


def make(*runs: Run, options: Options = BEST, name: str = "default") -> Ensemble:
    return make_ensemble(runs, runs[0].aggregate(name), options, CPU)


def predictions(ensemble: Ensemble, dataset: Dataset) -> dict[str, np.ndarray]:
    """Merged probabilities by record."""
    rows = np.arange(dataset.num_records)
    found = predictor(ensemble, dataset, CPU)(rows)
    return {dataset.record_ids[row]: image for part, images in found for row, image in zip(part, images, strict=True)}


def ash(dataset: Dataset) -> torch.Tensor:
    kelvin = dataset.bands[:, 0].astype(np.float32) * 0.01 + 273.15
    b11, b14, b15 = kelvin.swapaxes(0, 1)
    channels = [(b15 - b14 + 4) / 6, (b14 - b11 + 4) / 9, (b14 - 243) / 60]
    return torch.from_numpy(np.stack(channels, axis=1).clip(0, 1))


def test_an_ensemble_is_the_mean_of_its_members(trained: Run, tiny_data: Path) -> None:
    ensemble, dataset = make(trained), open_dataset(tiny_data / "test.h5")
    assert ensemble.complete
    assert [member.fold for member in ensemble.members] == ["0", "1", "2"]
    inputs = ash(dataset)
    with torch.inference_mode():
        members = [load_member(ensemble.path / member.file, dataset, CPU)[0] for member in ensemble.members]
        mean = torch.stack([torch.sigmoid(model(inputs).mask) for model in members]).mean(0).numpy()
    found = np.stack(list(predictions(ensemble, dataset).values()))
    assert np.abs(found.astype(float) / (NUM_BINS - 1) - mean).max() < 1e-4


def test_the_threshold_is_fitted_out_of_fold_and_the_score_says_so(trained: Run) -> None:
    ensemble = make(trained)
    done = [trained.fold(fold).read_done() for fold in ("0", "1", "2")]
    by_fold = ensemble.scores["dice_by_fold"]
    assert [by_fold[str(k)] for k in range(3)] == pytest.approx([d["best_dice"] for d in done if d], abs=1e-6)
    epochs = [[load_weights(ensemble.path / member.file)[1]["epoch"]] for member in ensemble.members]
    assert [member.epochs for member in ensemble.members] == epochs
    assert ensemble.scores["records"] == "out-of-fold; single members; epochs selected on these records"
    assert ensemble.scores["dice_cross_fitted"] <= ensemble.scores["dice_fitted_threshold"]
    low, high = ensemble.scores["interval"]
    assert low <= ensemble.scores["dice"] <= high


def test_the_command_writes_a_submission_in_the_order_of_the_sample(
    trained: Run, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = tmp_path / "sample.csv"
    sample.write_text("record_id,encoded_pixels\n2002,-\n2000,1 3\n2001,-\n")
    arguments = ["--data", str(tiny_data / "test.h5"), "--sample", str(sample), "--json"]
    cli(["aggregate", str(trained.path), *arguments], standalone_mode=False)
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    rows = list(csv.DictReader(Path(result["submission"]).read_text().splitlines()))
    assert [row["record_id"] for row in rows] == ["2002", "2000", "2001"]
    ensemble = read_ensemble(Path(result["ensemble"]))
    found = predictions(ensemble, open_dataset(tiny_data / "test.h5"))
    for row in rows:
        mask = apply(found[row["record_id"]], ensemble.threshold, ensemble.steps)
        assert np.array_equal(decode(row["encoded_pixels"], (32, 32)), mask)


def test_the_same_members_are_the_same_ensemble(trained: Run) -> None:
    first = make(trained)
    written = (first.path / "ensemble.json").stat().st_mtime_ns
    assert make(trained) == first
    assert (first.path / "ensemble.json").stat().st_mtime_ns == written
    assert make(trained, options=Options(weights="final")).options.weights == "final"


def test_what_is_damaged_in_an_ensemble_is_made_again(trained: Run) -> None:
    options = Options(weights="last2")
    first = make(trained, options=options)
    before = {file: file.read_bytes() for file in first.path.rglob("*.safetensors")}
    assert len(before) == 6
    for file, content in before.items():
        file.write_bytes(content[:-1])
    assert make(trained, options=options) == first
    assert {file: file.read_bytes() for file in before} == before


def test_made_twice_it_is_the_same_in_every_bit(trained: Run) -> None:
    options = Options(weights="last2", tta="flips", merge="median")
    first, second = make(trained, options=options), make(trained, options=options, name="again")
    assert (first.path / "ensemble.json").read_bytes() == (second.path / "ensemble.json").read_bytes()
    for member in first.members:
        assert (first.path / member.file).read_bytes() == (second.path / member.file).read_bytes()


def test_auto_takes_the_kind_that_is_best_over_all_folds(trained: Run) -> None:
    ensemble = make(trained, options=Options())
    compared = ensemble.scores["weights"]["run"]
    assert set(compared) == {"best", "final", "best5", "last5"}
    best = max(compared, key=lambda kind: compared[kind])
    assert {member.kind for member in ensemble.members} == {best}
    mean = np.mean([member.dice for member in ensemble.members if member.dice is not None])
    assert mean == pytest.approx(compared[best])


def test_some_of_the_folds_are_partial(make_run: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    run = train(make_run(train={"epochs": 1}), "1")
    ensemble = make(run)
    assert not ensemble.complete
    what = "out-of-fold; single members; epochs selected on these records; one fold: the threshold was fitted on these"
    assert ensemble.scores["records"] == f"{what} records; partial: 1 of 3 folds"
    assert "dice" not in ensemble.scores
    cli(["aggregate", str(run.path)], standalone_mode=False)
    shown = capsys.readouterr().out
    assert shown.count("partial: 1 of 3 folds") == 2
    dice, (low, high) = ensemble.scores["dice_fitted_threshold"], ensemble.scores["interval"]
    what = (
        f"{dice:.4f} (one fold: with the threshold that is best on these records; 95% interval {low:.4f} to {high:.4f})"
    )
    assert f"Dice:       {what}" in shown
    assert low <= dice <= high


def test_all_joins_with_an_inherited_threshold_and_is_unscored(make_run: Callable[..., Run]) -> None:
    run = train(make_run(train={"epochs": 1}), "0", "1", "all")
    ensemble = make(run, options=Options(weights="best3"))
    *scored, everything = ensemble.members
    assert (everything.fold, everything.dice) == ("all", None)
    assert everything.threshold == pytest.approx(np.mean([member.threshold for member in scored]))
    assert ensemble.folds == "2 of 3 folds"


def test_only_all_has_no_score_and_says_so(make_run: Callable[..., Run]) -> None:
    ensemble = make(train(make_run(train={"epochs": 1}), "all"))
    assert ensemble.threshold == 0.5
    assert ensemble.scores["records"].startswith(
        "none: no member has validation records, so the threshold is not fitted"
    )


def test_several_runs_merge_in_any_order(make_run: Callable[..., Run], tiny_data: Path) -> None:
    one = train(make_run("one", train={"epochs": 1}))
    two = train(make_run("two", train={"epochs": 1}, data={"size": 64, "composite": "bands"}))
    options = Options(weights="final", merge="logits", fit_weights=True)
    ensembles = [make(one, two, options=options), make(two, one, options=options)]
    dataset = open_dataset(tiny_data / "test.h5")
    first, second = (predictions(ensemble, dataset) for ensemble in ensembles)
    assert ensembles[0].members == ensembles[1].members
    assert ensembles[0].threshold == ensembles[1].threshold
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert sum(member.weight for member in ensembles[0].members) == pytest.approx(1)
    assert "one member of each of 2 runs, merged" in ensembles[0].scores["records"]
    assert ensembles[0].path == one.aggregate("default")


@pytest.mark.parametrize("rule", ["mean", "median", "median-mean", "vote"])
def test_every_rule_ends_in_an_ensemble(trained: Run, tiny_data: Path, rule: str) -> None:
    ensemble = make(trained, options=Options(weights="best", merge=rule, tta="d4"))
    assert 0 < ensemble.scores["dice_cross_fitted"] <= 1
    assert len(predictions(ensemble, open_dataset(tiny_data / "test.h5"))) == 3
    # what was not fitted has no interval, and shares of votes are not calibrated
    assert ("threshold" in ensemble.scores["intervals"]) == (rule not in ("vote", "median-mean"))
    assert ("calibration" in ensemble.scores) == (rule != "vote")
    show_ensemble(ensemble)


def test_runs_on_other_folds_are_refused(make_run: Callable[..., Run], tiny_data: Path, tmp_path: Path) -> None:
    rows = (tiny_data / "three.csv").read_text().splitlines()
    swapped = {"0": "1", "1": "0"}
    other = [f"{row[:-1]}{swapped.get(row[-1], row[-1])}" if row[0].isdecimal() else row for row in rows]
    (tmp_path / "other.csv").write_text("\n".join(other))
    one = train(make_run("one", train={"epochs": 1}), "0")
    two = train(make_run("two", train={"epochs": 1}, data={"filelist": str(tmp_path / "other.csv")}), "0")
    with pytest.raises(RunError, match="one and two have file lists that differ in the fold of 8 records"):
        make(one, two)


def test_shards_leave_nothing_to_predict(trained: Run, capsys: pytest.CaptureFixture[str]) -> None:
    path, options = trained.aggregate("default"), Options(weights="last2")
    assert predict_shard([trained], path, options, (1, 2), CPU) == ["run-fold0", "run-fold2"]
    assert predict_shard([trained], path, options, (2, 2), CPU) == ["run-fold1"]
    files = sorted(path.rglob("*.h5")) + sorted((path / "averages").iterdir())
    before = [file.stat().st_mtime_ns for file in files]
    make(trained, options=options)
    assert [file.stat().st_mtime_ns for file in files] == before
    with pytest.raises(RecipeError, match="--weights auto compares all folds"):
        predict_shard([trained], path, Options(), (1, 2), CPU)


def test_other_code_data_or_recipe_is_refused_unless_allowed(trained: Run) -> None:
    trained.toml.write_text(trained.toml.read_text().replace("lr = 0.003", "lr = 0.002"))
    with pytest.raises(RunError, match=r"was trained with other recipe than .* give --allow"):
        make(trained)
    assert make(trained, options=Options(weights="best", allow=True)).complete
    trained.toml.write_text(trained.toml.read_text().replace("lr = 0.002", "lr = 0.003"))
    changed(trained.fold("1"), "ema", lambda tensors: tensors, code="of another day", data={})
    with pytest.raises(RunError, match=r"ema.safetensors was trained with other data and code than .* give --allow"):
        make(trained)
    trained.toml.write_text(trained.toml.read_text().replace('code = ""', 'code = "123"'))
    with pytest.raises(DataError, match=r"changed since the run was made: the code frozen in the run"):
        make(trained)


def test_held_out_records_score_the_ensemble_itself(
    make_run: Callable[..., Run], tiny_data: Path, tmp_path: Path
) -> None:
    rows = (tiny_data / "three.csv").read_text().splitlines()
    held = [f"{row[:-1]}-1" if row.startswith(("1000", "1001")) else row for row in rows]
    (tmp_path / "held.csv").write_text("\n".join(held))
    run = train(make_run(train={"epochs": 2}, data={"filelist": str(tmp_path / "held.csv")}))
    ensemble = make(run)
    dataset = open_dataset(tiny_data / "train.h5")
    found = predictions(ensemble, dataset)
    masks = np.stack([apply(found[name], ensemble.threshold, ensemble.steps) for name in ("1000", "1001")])
    truth = np.stack([dataset.hard(row) for row in dataset.rows(("1000", "1001"))])
    assert ensemble.scores["held_out"]["dice"] == pytest.approx(2 * (masks & truth).sum() / (masks.sum() + truth.sum()))
    averaged = make(run, options=Options(weights="final", average_folds=True))
    assert [member.fold for member in averaged.members] == ["mean of 0, 1, 2"]
    assert averaged.scores["held_out"]["num_records"] == 2


def test_folds_are_averaged_only_with_held_out_records(trained: Run) -> None:
    with pytest.raises(RunError, match="expected held-out records to score the mean of the folds"):
        make(trained, options=Options(average_folds=True))


def test_no_finished_fold_is_an_error(make_run: Callable[..., Run]) -> None:
    with pytest.raises(RunError, match="expected a finished fold in run, found none"):
        make(make_run())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(weights="swa"), r"--weights swa: run-fold0 has none; .*Known: .*best5"),
        (Options(merge="mode"), "--merge mode: .*Known: logits, mean"),
        (Options(tta="d5"), r"--tta d5: expected words joined by \+; Known: crop, d4, flips"),
    ],
)
def test_unknown_words_are_named(trained: Run, options: Options, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make(trained, options=options)


def test_damaged_weights_are_named(trained: Run) -> None:
    done = trained.fold("1").read_done()
    assert done is not None
    path = trained.fold("1").weights / done["weights"]["best"]["file"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{path.name} is missing or is not the file that .*done.json names"):
        make(trained)
    with pytest.raises(DataError, match=r"expected an ensemble of version 2 in .*default"):
        read_ensemble(trained.aggregate("default"))


def changed(fold: Fold, name: str, change: Callable[[dict[str, torch.Tensor]], object], **origin: Any) -> None:
    """Change the weights that a fold's `done.json` calls `name`, and let it name the new ones."""
    done = read_json(fold.done)
    tensors, about = load_weights(fold.weights / done["weights"]["best"]["file"])
    change(tensors)
    path = fold.weights / f"{name}.safetensors"
    save_weights(path, tensors, about | {"dice": None, "threshold": None} | origin)
    done["weights"][name] = {"file": path.name, "sha256": sha256(path), "epoch": about["epoch"]}
    fold.done.write_text(to_json(done))


def test_whatever_done_names_can_be_a_member(trained: Run) -> None:
    for fold in trained.folds():
        changed(fold, "ema", lambda tensors: tensors)
    ema, best = make(trained, options=Options(weights="ema")), make(trained, name="best")
    assert [member.kind for member in ema.members] == ["ema"] * 3
    assert [m.dice for m in ema.members] == pytest.approx([m.dice for m in best.members])
    assert "ema" in make(trained, options=Options(), name="auto").scores["weights"]["run"]


@pytest.mark.parametrize("kind", ["best2", "last2", "soup"])
def test_averages_keep_their_lineage(trained: Run, kind: str) -> None:
    ensemble = make(trained, options=Options(weights=kind))
    for member, fold in zip(ensemble.members, trained.folds(), strict=True):
        tensors, about = load_weights(ensemble.path / member.file)
        kept = {sha256(path): load_weights(path)[0] for *_, path in fold.all_weights()}
        assert set(member.sources) <= set(kept)
        name = next(name for name in tensors if name.endswith("weight"))
        mean = torch.stack([kept[digest][name] for digest in member.sources]).mean(0)
        assert torch.allclose(tensors[name], mean, atol=1e-6)
        assert about["lineage"]["batch_norm_records"] == 8
        assert about["dice"] == member.dice
        if kind == "soup":
            assert member.dice is not None
            assert member.dice >= max(load_weights(path)[1]["dice"] for *_, path in fold.all_weights()) - 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: next(iter(tensors.values())).fill_(float("nan")), "holds weights that are not finite"),
        (lambda tensors: tensors.popitem(), "does not fit the model of its own recipe"),
        (lambda tensors: tensors.update(more=torch.zeros(1)), "does not fit the model of its own recipe"),
    ],
)
def test_weights_that_cannot_predict_are_named(
    trained: Run, change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    changed(trained.fold("1"), "best", change)
    with pytest.raises(DataError, match=rf"folds/1/weights/best.safetensors {message}"):
        make(trained)


def inflate(tensors: dict[str, torch.Tensor]) -> None:
    """Make weights that are finite and whose output is not."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and "running" not in name:
            tensor.fill_(1e30)


def test_members_whose_output_is_not_finite_are_named(trained: Run) -> None:
    for fold in trained.folds():
        changed(fold, "ema", inflate if fold.key == "1" else lambda tensors: tensors)
        changed(fold, "swa", inflate if fold.key == "1" else lambda tensors: tensors, dice=0.9, threshold=0.5)
    unscored = r"run-fold1, --weights ema: .* not finite for 4 of 4 records \(1\d+.*; choose another --weights of best"
    with pytest.raises(DataError, match=unscored):
        make(trained, options=Options(weights="ema"))
    scored = r"the output of \S+/1/weights/swa.safetensors is not finite for the records 1\d\d\d, "
    with pytest.raises(DataError, match=scored):
        make(trained, options=Options(weights="swa"))


@pytest.mark.parametrize("array", ["bands", "votes"])
def test_records_that_are_not_what_was_written_are_not_predicted(
    trained: Run, tiny_data: Path, tmp_path: Path, array: str
) -> None:
    ensemble, path = make(trained), tmp_path / "damaged.h5"
    shutil.copy(tiny_data / "train.h5", path)
    flip_a_bit(path, array, 3)
    said = rf"{path} is damaged: record 1003: /{array} is not what was written; .*`contrails data verify {path}`"
    with pytest.raises(DataError, match=said):
        predictions(ensemble, open_dataset(path))


def test_empty_masks_are_a_valid_submission_with_a_warning(
    trained: Run, tiny_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(trained).path / "ensemble.json"
    path.write_text(to_json(read_json(path) | {"threshold": 1.0}))
    arguments = ["--weights", "best", "--data", str(tiny_data / "test.h5")]
    cli(["aggregate", str(trained.path), *arguments], standalone_mode=False)
    assert "warning: every mask of the submission is empty" in capsys.readouterr().err
    assert (path.parent / "submission.csv").read_text().count(",-\n") == 3


def test_a_sample_with_other_records_is_refused_before_anything_is_done(
    trained: Run, tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "sample.csv").write_text("record_id,encoded_pixels\n2000,-\n9999,-\n")
    arguments = ["--data", str(tiny_data / "test.h5"), "--sample", str(tmp_path / "sample.csv")]
    with pytest.raises(DataError, match="lacks 1 records, such as 9999"):
        cli(["aggregate", str(trained.path), *arguments], standalone_mode=False)
    assert not (trained.path / "aggregate").exists()


def test_killed_anywhere_it_ends_in_the_same_bits(trained: Run, tiny_data: Path) -> None:
    """Killed when it has written a file for the n-th time, for n = 1, 2, ... until it is not."""
    arguments = ["--weights", "last2", "--data", str(tiny_data / "test.h5"), "--device", "cpu"]
    kills = 0
    command = [sys.executable, "-c", _KILLED, "aggregate", str(trained.path), *arguments, "-o"]
    command += [str(trained.path / "killed")]
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    while (code := subprocess.run(command, env=environment | {"KILL_AFTER": "4"}, check=False).returncode) != 0:
        assert code == -signal.SIGKILL
        kills += 1
    assert kills >= 2
    command[-1] = str(trained.path / "undisturbed")
    subprocess.run(command, env=environment | {"KILL_AFTER": "999"}, check=True)
    files = [f"run-fold{fold}.safetensors" for fold in range(3)] + ["submission.csv"]
    for name in files:
        assert (trained.path / "killed" / name).read_bytes() == (trained.path / "undisturbed" / name).read_bytes()


_KILLED = """
import os, signal
import contrails.files
from contrails.cli.main import main

left, fsync = [int(os.environ["KILL_AFTER"])], contrails.files.fsync
def counted(path):
    fsync(path)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
contrails.files.fsync = counted
main()
"""
