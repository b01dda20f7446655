"""Files of predictions: readable by others, resumed after a kill, made anew for other members, on a full disk."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from contrails.aggregate.members import prediction_files as predictions
from contrails.aggregate.members.prediction_files import Wanted, complete
from contrails.errors import RunError, StorageError
from contrails.locks import sole_writer


def wanted(count: int = 6, about: str = "one") -> Wanted:
    rows = np.arange(count) * 2
    return Wanted(rows, tuple(f"r{row}" for row in rows), (4, 5), "run-fold0", {"weights": about})


def image(row: int) -> np.ndarray:
    return np.full((4, 5), 1000 + row, np.uint16)


class Model:
    """Answers with the row's number, two rows at a time; keeps what it was asked."""

    def __init__(self, stop_after: int = 99) -> None:
        self.asked: list[int] = []
        self.left = stop_after

    def __call__(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(rows), 2):
            if self.left <= 0:
                raise KeyboardInterrupt
            part = rows[start : start + 2]
            self.asked += part.tolist()
            self.left -= len(part)
            yield part, np.stack([image(row) for row in part])


def test_every_row_is_there_and_says_whose_it_is(tmp_path: Path) -> None:
    found = complete(tmp_path / "folder" / "a.h5", wanted(), Model(), "test")
    assert np.array_equal(found, np.stack([image(row) for row in range(0, 12, 2)]))
    with h5py.File(tmp_path / "folder" / "a.h5") as file:
        assert file["probabilities"].dtype == np.uint16
        assert file["record_id"].asstr()[:].tolist() == ["r0", "r2", "r4", "r6", "r8", "r10"]
        assert set(file["member"].asstr()[:]) == {"run-fold0"}
    again = Model()
    assert np.array_equal(complete(tmp_path / "folder" / "a.h5", wanted(), again, "test"), found)
    assert again.asked == []


def test_what_is_there_is_not_predicted_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        complete(tmp_path / "a.h5", wanted(), Model(stop_after=4), "test")
    resumed = Model()
    found = complete(tmp_path / "a.h5", wanted(), resumed, "test")
    assert resumed.asked == [8, 10]
    assert np.array_equal(found[:, 0, 0], 1000 + wanted().rows)


def test_a_row_that_was_torn_is_predicted_again(tmp_path: Path) -> None:
    complete(tmp_path / "a.h5", wanted(), Model(), "test")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["probabilities"][2, 3, 3] = 0
    model = Model()
    complete(tmp_path / "a.h5", wanted(), model, "test")
    assert model.asked == [4]


@pytest.mark.parametrize("damage", ["other", "cut", "foreign"])
def test_other_members_or_a_damaged_file_are_predicted_anew(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.h5"
    complete(path, wanted(about="two" if damage == "other" else "one"), Model(), "test")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-50])
    elif damage == "foreign":
        path.write_text("nothing")
    model = Model()
    complete(path, wanted(), model, "test")
    assert len(model.asked) == 6


def test_killed_it_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "a.h5")]
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(["tests/aggregate", *sys.path])}
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    model = Model()
    found = complete(tmp_path / "a.h5", wanted(), model, "test")
    assert model.asked == [4, 6, 8, 10]
    assert np.array_equal(found[:, 0, 0], 1000 + wanted().rows)


_KILLED = """
import os, signal, sys
from pathlib import Path
from test_predictions import Model, complete, wanted

class Killed(Model):
    def __call__(self, rows):
        batches = super().__call__(rows)
        yield next(batches)
        os.kill(os.getpid(), signal.SIGKILL)

complete(Path(sys.argv[1]), wanted(), Killed(), "test")
"""


def test_two_writers_exclude_each_other(tmp_path: Path) -> None:
    with (
        sole_writer(tmp_path / ".a.h5.lock", "unused"),
        pytest.raises(RunError, match=r"another process predicts into .*a.h5; wait for it"),
    ):
        complete(tmp_path / "a.h5", wanted(), Model(), "test")


def test_a_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    """A limit on the size of files stands for the end of the disk; it is that of another process."""
    path = tmp_path / "a.h5"
    complete(path, wanted(about="other"), Model(), "test")
    size = path.stat().st_size
    path.unlink()
    code = f"""
import resource, signal, sys
from pathlib import Path
from test_predictions import Model, complete, wanted
import contrails.aggregate.members.prediction_files as predictions
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
create = predictions._create
def create_and_limit(*arguments):
    create(*arguments)
    offset, row = predictions._row_offsets(Path(sys.argv[1]))["probabilities"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (offset + 3 * row, {size}))
predictions._create = create_and_limit
complete(Path(sys.argv[1]), wanted(), Model(), "test")
"""
    environment = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(["tests/aggregate", *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, text=True, check=False
    )
    assert StorageError.__name__ in done.stderr
    assert f"cannot write {path}: File too large; check the free space" in done.stderr
    model = Model()
    assert np.array_equal(complete(path, wanted(), model, "test")[:, 0, 0], 1000 + wanted().rows)
    assert 0 < len(model.asked) <= 6


def test_nothing_is_mapped_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk a page of a hole that is looked at through a map ends the process without a word."""
    mapped = []

    def map_when_whole(path: Path, name: str) -> np.ndarray:
        assert not len(predictions._missing(path))
        mapped.append(name)
        return map_array(path, name)

    map_array = predictions._map
    monkeypatch.setattr(predictions, "_map", map_when_whole)
    with pytest.raises(KeyboardInterrupt):
        complete(tmp_path / "a.h5", wanted(), Model(stop_after=4), "test")
    assert mapped == []
    complete(tmp_path / "a.h5", wanted(), Model(), "test")
    assert mapped == ["probabilities"]
