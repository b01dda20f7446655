"""`contrails aggregate`: what is refused before any work."""

from pathlib import Path

import pytest
from conftest import MakeRun

from contrails.cli.main import cli
from contrails.errors import DataError, RunError


def aggregate(*arguments: str | Path) -> None:
    cli(["aggregate", *map(str, arguments)], standalone_mode=False)


def test_a_submission_of_another_dataset_is_not_overwritten(make_run: MakeRun, tiny_data: Path) -> None:
    run = make_run()
    path = run.aggregate("default") / "submission.csv"
    path.parent.mkdir(parents=True)
    path.write_text("record_id,encoded_pixels\n2000,-\n2001,-\n2002,-\n")
    with pytest.raises(
        DataError, match=r"submission.csv is the submission of another dataset, .*; give another --name"
    ):
        aggregate(run.path, "--data", tiny_data / "train.h5")
    for arguments in ((tiny_data / "test.h5",), (tiny_data / "train.h5", "--name", "train")):
        with pytest.raises(RunError, match="expected a finished fold in run, found none"):  # so far it went on
            aggregate(run.path, "--data", *arguments)


def test_a_gate_without_an_ensemble_is_refused_with_what_comes_next(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONTRAILS_RUNS", str(tmp_path))
    gate, run = make_run("my gate"), make_run()

    def refused(step: str) -> None:
        with pytest.raises(RunError, match=f"expected an ensemble in {gate.aggregate('default')}, found none; {step}"):
            aggregate(run.path, "--gate", "my gate")

    refused("no fold has finished yet: check with `contrails status 'my gate'`, and aggregate it afterwards")
    gate.fold("0").path.mkdir(parents=True)
    gate.fold("0").done.write_text("{}")
    refused("make it with `contrails aggregate 'my gate'`")
    other = gate.aggregate("other") / "ensemble.json"
    other.parent.mkdir(parents=True)
    other.write_text("{}")
    refused(f"give the folder of another ensemble of this run, such as '{other.parent}'")
