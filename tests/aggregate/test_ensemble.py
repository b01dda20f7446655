"""From trained folds to an ensemble and a submission, on a tiny run."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contrails.aggregate.ensemble import load_member, make_ensemble, read_ensemble
from contrails.aggregate.predict import predict_masks
from contrails.aggregate.rle import decode
from contrails.cli.main import cli
from contrails.data.store import open_dataset
from contrails.errors import DataError, RunError
from contrails.metrics import NUM_BINS
from contrails.models.weights import load_weights
from contrails.runs import Run
from contrails.train.fold import train_fold

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("restore_process")


@pytest.fixture
def trained(make_run: Callable[..., Run]) -> Run:
    run = make_run(train={"epochs": 2})
    for fold in ("0", "1", "2"):
        train_fold(run.fold(fold), {})
    return run


def test_an_ensemble_is_the_mean_of_its_members_cut_at_its_threshold(trained: Run, tiny_data: Path) -> None:
    ensemble = make_ensemble(trained, "default", CPU)
    assert ensemble.complete
    assert [member.fold for member in ensemble.members] == ["0", "1", "2"]
    dataset = open_dataset(tiny_data / "test.h5")
    masks = dict(predict_masks(ensemble, dataset, CPU))
    kelvin = dataset.bands[:, 0].astype(np.float32) * 0.01 + 273.15
    b11, b14, b15 = kelvin.swapaxes(0, 1)
    ash = np.stack([(b15 - b14 + 4) / 6, (b14 - b11 + 4) / 9, (b14 - 243) / 60], axis=1).clip(0, 1)
    with torch.inference_mode():
        probs = torch.stack(
            [torch.sigmoid(load_member(ensemble, m, dataset, CPU)[0](torch.from_numpy(ash))) for m in ensemble.members]
        )
    mean = probs.mean(0).numpy() * (NUM_BINS - 1)
    clear = np.abs(mean - ensemble.threshold * (NUM_BINS - 1)) > 20  # rounding may go either way at the threshold
    found = np.stack([masks[record_id] for record_id in dataset.record_ids])
    assert clear.mean() > 0.9
    assert np.array_equal(found[clear], (mean >= ensemble.threshold * (NUM_BINS - 1))[clear])


def test_the_threshold_is_fitted_out_of_fold_and_the_score_says_so(trained: Run) -> None:
    ensemble = make_ensemble(trained, "default", CPU)
    done = [trained.fold(fold).read_done() for fold in ("0", "1", "2")]
    by_fold = ensemble.scores["dice_by_fold"]
    assert [by_fold[str(k)] for k in range(3)] == pytest.approx([d["best_dice"] for d in done if d], abs=1e-6)
    epochs = [load_weights(ensemble.path / member.file)[1]["epoch"] for member in ensemble.members]
    assert [member.epoch for member in ensemble.members] == epochs
    assert ensemble.scores["records"] == "out-of-fold; single members; epochs selected on these records"
    assert ensemble.scores["dice_cross_fitted"] <= ensemble.scores["dice_fitted_threshold"]


def test_the_command_writes_a_submission_in_the_order_of_the_sample(
    trained: Run, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = tmp_path / "sample.csv"
    sample.write_text("record_id,encoded_pixels\n2002,-\n2000,1 3\n2001,-\n")
    arguments = [
        "aggregate",
        str(trained.path),
        "--data",
        str(tiny_data / "test.h5"),
        "--sample",
        str(sample),
        "--json",
    ]
    cli(arguments, standalone_mode=False)
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    rows = list(csv.DictReader(Path(result["submission"]).read_text().splitlines()))
    assert [row["record_id"] for row in rows] == ["2002", "2000", "2001"]
    ensemble = read_ensemble(Path(result["ensemble"]))
    masks = dict(predict_masks(ensemble, open_dataset(tiny_data / "test.h5"), CPU))
    for row in rows:
        assert np.array_equal(decode(row["encoded_pixels"], (32, 32)), masks[row["record_id"]])


def test_the_same_members_are_the_same_ensemble(trained: Run) -> None:
    first = make_ensemble(trained, "default", CPU)
    written = (first.path / "ensemble.json").stat().st_mtime_ns
    assert make_ensemble(trained, "default", CPU) == first
    assert (first.path / "ensemble.json").stat().st_mtime_ns == written


def test_some_of_the_folds_are_partial(make_run: Callable[..., Run]) -> None:
    run = make_run(train={"epochs": 1})
    train_fold(run.fold("1"), {})
    assert not make_ensemble(run, "default", CPU).complete


def test_no_finished_fold_is_an_error(make_run: Callable[..., Run]) -> None:
    with pytest.raises(RunError, match="no fold of run is finished yet"):
        make_ensemble(make_run(), "default", CPU)


def test_damaged_weights_are_named(trained: Run) -> None:
    done = trained.fold("1").read_done()
    assert done is not None
    path = trained.fold("1").weights / done["weights"]["best"]["file"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=rf"{path.name} is missing or is not the file that .*done.json names"):
        make_ensemble(trained, "default", CPU)
    with pytest.raises(DataError, match=r"expected an ensemble of version 1 in .*default"):
        read_ensemble(trained.aggregate("default"))
