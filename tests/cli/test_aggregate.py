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
        DataError, match=r"submission.csv is the submission of another dataset, .*; give --name for one"
    ):
        aggregate(run.path, "--data", tiny_data / "train.h5")
    for arguments in ((tiny_data / "test.h5",), (tiny_data / "train.h5", "--name", "train")):
        with pytest.raises(RunError, match="no fold of run is finished yet"):  # so far it went on
            aggregate(run.path, "--data", *arguments)
