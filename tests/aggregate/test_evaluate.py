"""Scores of an ensemble on labelled records, beside scikit-learn and counted by hand; both commands that use one."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import average_precision_score

from contrails.aggregate.apply import predictor
from contrails.aggregate.assemble import make_ensemble
from contrails.aggregate.decide.postprocess import apply
from contrails.aggregate.ensemble import Ensemble
from contrails.aggregate.members.untile import Whole
from contrails.aggregate.options import Options
from contrails.aggregate.output import masks as masks_module
from contrails.aggregate.scores.evaluate import evaluate_ensemble
from contrails.cli.main import cli
from contrails.dataset.store import Dataset, open_dataset
from contrails.errors import DataError, RunError
from contrails.locks import sole_writer
from contrails.metrics import NUM_BINS, Histogram, average_precision
from contrails.runs.folder import Run
from contrails.train.fold import train_fold

from raw_records import write_record

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("restore_process")


@pytest.fixture
def ensemble(make_run: Callable[..., Run]) -> Ensemble:
    run = make_run(train={"epochs": 3})
    for fold in ("0", "1", "2"):
        train_fold(run.fold(fold))
    return make_ensemble([run], run.aggregate("default"), Options(weights="best"), CPU)


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("validation")
    for index in range(6):
        write_record(root / "raw", "validation", f"{3000 + index}", seed=50 + index, positive=index % 2 == 0)
    cli(["prepare", str(root / "raw"), str(root / "v.h5"), "--split", "validation"], standalone_mode=False)
    return root / "v.h5"


def masks(ensemble: Ensemble, dataset: Dataset) -> np.ndarray:
    found = predictor(ensemble, dataset, CPU)(np.arange(dataset.num_records))
    return np.stack([apply(image, ensemble.threshold, ensemble.steps) for _, images in found for image in images])


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=50))
def test_average_precision_is_that_of_scikit_learn(pixels: list[tuple[int, bool]]) -> None:
    stored, hard = np.array([7000 * p for p, _ in pixels]), np.array([h for _, h in pixels])
    if not hard.any():
        return
    histogram = Histogram(np.bincount(stored[hard], minlength=NUM_BINS), np.bincount(stored[~hard], minlength=NUM_BINS))
    assert average_precision(histogram) == pytest.approx(average_precision_score(hard, stored))


def test_scores_are_those_of_the_masks(ensemble: Ensemble, validation: Path) -> None:
    dataset = open_dataset(validation)
    result = evaluate_ensemble(ensemble, dataset, np.arange(6), CPU)
    found, truth = masks(ensemble, dataset), np.stack([dataset.hard(row) for row in range(6)])
    summary = result.summary()
    tp, fp, fn = (found & truth).sum(), (found & ~truth).sum(), (~found & truth).sum()
    assert [summary[key] for key in ("tp", "fp", "fn", "tn")] == [tp, fp, fn, truth.size - tp - fp - fn]
    assert summary["dice"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
    assert summary["iou"] == pytest.approx(tp / (tp + fp + fn))
    assert summary["precision"] == pytest.approx(tp / (tp + fp))
    assert summary["recall"] == pytest.approx(tp / (tp + fn))
    assert result.table["tp"].tolist() == (found & truth).sum((1, 2)).tolist()
    by_size = result.by("size")
    assert by_size["records"].tolist() == [3, 3]
    assert by_size["tp"].sum() == tp
    assert len(result.by("group")) == 6
    assert result.by("time").index.tolist() == ["unknown"]


def test_a_dataset_without_labels_is_refused(ensemble: Ensemble, tiny_data: Path) -> None:
    with pytest.raises(DataError, match=r"test.h5: expected labelled records, found none"):
        evaluate_ensemble(ensemble, open_dataset(tiny_data / "test.h5"), np.arange(3), CPU)


def test_the_command_evaluate(
    ensemble: Ensemble, validation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "evaluate",
        str(ensemble.path),
        str(validation),
        "--csv",
        str(tmp_path / "records.csv"),
        "--by",
        "size",
    ]
    cli([*arguments, "--json"], standalone_mode=False)
    answer = json.loads(capsys.readouterr().out)
    assert answer["records"] == "6 records that nothing was fitted on"
    assert set(answer["by"]) == {"none", "1 to 99 px"}
    rows = list(csv.DictReader((tmp_path / "records.csv").read_text().splitlines()))
    assert [row["record_id"] for row in rows] == [f"{3000 + index}" for index in range(6)]
    assert sum(int(row["tp"]) for row in rows) == answer["tp"]
    cli(arguments, standalone_mode=False)
    shown = capsys.readouterr().out
    assert "worst records" in shown
    assert "auc_pr" in shown


def test_records_that_were_trained_on_have_no_score(ensemble: Ensemble, tiny_data: Path) -> None:
    with pytest.raises(
        DataError, match=r"that no member has seen in .*train.h5, found none: all 12 were used to train"
    ):
        cli(["evaluate", str(ensemble.path), str(tiny_data / "train.h5")], standalone_mode=False)
    with pytest.raises(RunError, match="expected a run called 'nothing'"):
        cli(["evaluate", "nothing", str(tiny_data / "train.h5")], standalone_mode=False)


def test_the_command_predict(ensemble: Ensemble, tiny_data: Path, tmp_path: Path) -> None:
    dataset, name = open_dataset(tiny_data / "test.h5"), str(ensemble.path)
    expected = masks(ensemble, dataset)
    inputs = {"file": tiny_data / "test.h5", "raw": tiny_data / "raw" / "test"}
    for kind in ("npy", "png"):
        for source, path in inputs.items():
            cli(["predict", name, str(path), str(tmp_path / source), "--format", kind], standalone_mode=False)
    for source in inputs:
        for record_id, mask in zip(dataset.record_ids, expected, strict=True):
            assert np.array_equal(np.load(tmp_path / source / f"{record_id}.npy"), mask)
            with Image.open(tmp_path / source / f"{record_id}.png") as picture:
                assert np.array_equal(np.asarray(picture) == 255, mask)
    cli(["predict", name, str(inputs["raw"]), str(tmp_path / "a.csv")], standalone_mode=False)
    cli(["submission", "check", str(tmp_path / "a.csv"), "--shape", "32,32"], standalone_mode=False)
    cli(
        ["predict", name, str(inputs["file"]), str(tmp_path / "p.h5"), "--format", "probabilities"],
        standalone_mode=False,
    )
    with h5py.File(tmp_path / "p.h5") as file:
        found = file["probabilities"][:]
    assert np.array_equal([apply(image, ensemble.threshold, ensemble.steps) for image in found], expected)


def test_masks_go_on_where_a_kill_left_them_and_are_never_mixed(
    ensemble: Ensemble,
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, arguments = tmp_path / "masks", ["predict", str(ensemble.path), str(tiny_data / "test.h5")]

    def write_one(path: Path, whole: Whole, mask: np.ndarray) -> None:
        if out.exists() and list(out.glob("*.png")):
            raise KeyboardInterrupt
        write_mask(path, whole, mask)

    write_mask = masks_module._write
    with monkeypatch.context() as patch:
        patch.setattr(masks_module, "_write", write_one)
        with pytest.raises(click.Abort):
            cli([*arguments, str(out), "--format", "png"], standalone_mode=False)
    first = out / "2000.png"
    written = first.stat().st_mtime_ns
    cli([*arguments, str(out), "--format", "png"], standalone_mode=False)
    assert f"{out}: 3 masks, 1 of them were there" in capsys.readouterr().out
    assert first.stat().st_mtime_ns == written
    assert sorted(path.name for path in out.iterdir()) == ["2000.png", "2001.png", "2002.png", "predicted.json"]
    with pytest.raises(DataError, match=r"masks holds masks of another ensemble or input; give another folder"):
        cli([*arguments[:2], str(tiny_data / "train.h5"), str(out), "--format", "png"], standalone_mode=False)
    (out / "predicted.json").unlink()
    with pytest.raises(DataError, match=r"masks holds 2000.png, but no predicted.json that names its origin"):
        cli([*arguments, str(out), "--format", "png"], standalone_mode=False)


@pytest.mark.parametrize("kind", ["png", "npy"])
def test_a_damaged_mask_is_told_and_made_again(
    ensemble: Ensemble, tiny_data: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "masks"
    command = ["predict", str(ensemble.path), str(tiny_data / "test.h5"), str(out), "--format", kind]
    cli(command, standalone_mode=False)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in sorted(out.glob(f"*.{kind}"))}
    truncated, emptied, intact = before
    truncated.write_bytes(before[truncated][0][:-20])
    emptied.write_bytes(b"")
    caplog.clear()
    cli(command, standalone_mode=False)
    assert {path: path.read_bytes() for path in before} == {path: content for path, (content, _) in before.items()}
    assert intact.stat().st_mtime_ns == before[intact][1]
    assert (
        f"2 existing masks are damaged or incomplete, and are made again: 2000.{kind}, 2001.{kind}" in caplog.messages
    )


@pytest.mark.parametrize(("name", "kind"), [("masks", "png"), ("a.csv", "submission"), ("p.h5", "probabilities")])
def test_the_same_again_is_done_already_and_something_else_is_refused(
    ensemble: Ensemble, tiny_data: Path, tmp_path: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / name

    def predict(source: str, *options: str) -> str:
        capsys.readouterr()
        cli(["predict", str(ensemble.path), str(tiny_data / source), str(out), "--format", kind, *options],
            standalone_mode=False)  # fmt: skip
        return capsys.readouterr().out

    what = f"{out}: {'probabilities of ' if kind == 'probabilities' else ''}3 {'records' if '.h5' in name else 'masks'}"
    assert predict("test.h5") == f"{what}\n"
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert predict("test.h5") == predict("test.h5", "--force") == f"{what}, complete already: nothing to do\n"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path != tmp_path / name} == {
        path: time for path, time in files.items() if path != tmp_path / name
    }
    with pytest.raises(DataError, match=r"or --force to replace"):
        predict("train.h5")
    assert "nothing to do" not in predict("train.h5", "--force")


def test_a_submission_that_was_changed_is_not_taken_as_done(
    ensemble: Ensemble, tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.csv"
    command = ["predict", str(ensemble.path), str(tiny_data / "test.h5"), str(out)]
    cli(command, standalone_mode=False)
    content = out.read_bytes()
    out.write_bytes(content[:-5])
    with pytest.raises(
        DataError, match=r"a.csv exists, and was changed after it was written; .* or --force to replace"
    ):
        cli(command, standalone_mode=False)
    cli([*command, "--force"], standalone_mode=False)
    assert out.read_bytes() == content


def test_no_mask_is_passed_off_as_what_the_folder_is_of_now(
    ensemble: Ensemble, tiny_data: Path, tmp_path: Path
) -> None:
    out, arguments = tmp_path / "masks", ["predict", str(ensemble.path)]

    def predict(source: str, kind: str, *options: str) -> None:
        cli([*arguments, str(tiny_data / source), str(out), "--format", kind, *options], standalone_mode=False)

    predict("test.h5", "png")
    with pytest.raises(DataError, match="masks of another ensemble or input"):
        predict("test.h5", "npy", "--blend", "gaussian")
    predict("test.h5", "npy", "--blend", "gaussian", "--force")
    assert {path.suffix for path in out.iterdir()} == {".npy", ".json"}
    with (
        sole_writer(out / "predicted.lock", "busy"),
        pytest.raises(RunError, match=r"another process predicts into .*masks; wait for it"),
    ):
        predict("test.h5", "png", "--force")


def test_a_submission_goes_on_where_a_kill_left_it(
    ensemble: Ensemble, tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["predict", str(ensemble.path), str(tiny_data / "test.h5")]

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("contrails.aggregate.output.submission.write_submission", killed)
        with pytest.raises(click.Abort):
            cli([*arguments, str(tmp_path / "a.csv")], standalone_mode=False)
    assert [path.name for path in tmp_path.iterdir() if "a.csv" in path.name] == [".a.csv"]
    monkeypatch.setattr(
        "contrails.aggregate.members.predict.Predictor.__call__", lambda *_: pytest.fail("predicted again")
    )
    monkeypatch.setattr("contrails.aggregate.members.prediction_files._fill", killed)
    cli([*arguments, str(tmp_path / "a.csv")], standalone_mode=False)
    assert sorted(path.name for path in tmp_path.iterdir() if "a.csv" in path.name) == ["a.csv", "a.csv.json"]


def test_an_ensemble_can_be_moved_and_a_damaged_one_is_named(
    ensemble: Ensemble, tiny_data: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(ensemble.path, moved)
    cli(["predict", str(moved), str(tiny_data / "test.h5"), str(tmp_path / "a.csv")], standalone_mode=False)
    member = moved / ensemble.members[1].file
    member.write_bytes(member.read_bytes()[:-1])
    with pytest.raises(
        DataError, match=rf"{member} is missing or damaged; restore it, or make the ensemble again with"
    ):
        cli(["predict", str(moved), str(tiny_data / "test.h5"), str(tmp_path / "b.csv")], standalone_mode=False)
    assert not (tmp_path / "b.csv").exists()
