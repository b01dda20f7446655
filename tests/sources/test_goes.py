"""GOES records: what is no temperature of the Earth is no kelvin."""

from pathlib import Path

import numpy as np
import pytest

from contrails.errors import DataError
from contrails.sources.goes import make_plan, read_record

from raw_records import write_record


def write_band(root: Path, kelvin: np.ndarray) -> None:
    np.save(write_record(root, "train", "7") / "band_14.npy", kelvin.astype(np.float32))


def read(root: Path) -> np.ndarray:
    plan = make_plan(root, "train", (11, 14, 15), (3, 4))
    return read_record(plan.header, plan.records[0])[0]["bands"]


@pytest.mark.parametrize(
    ("kelvin", "message"),
    [
        (
            np.linspace(-80, 30, 32),
            r"found values from -80.0 to 30.0 in frame 3; they look like degrees Celsius: add 273",
        ),
        (np.linspace(0, 1, 32), "found values from 0.0 to 1.0 in frame 3; they look like degrees Celsius"),
        (np.zeros(32), "found values from 0.0 to 0.0 in frame 3; get it again, or leave it out"),
        (np.linspace(351, 500, 32), "found values from 351.0 to 500.0 in frame 3; get it again"),
        (np.linspace(100, 149, 32), "found values from 100.0 to 149.0 in frame 3; get it again"),
    ],
)
def test_a_band_that_is_not_in_kelvin_is_refused(tmp_path: Path, kelvin: np.ndarray, message: str) -> None:
    write_band(tmp_path, np.broadcast_to(kelvin[:, None, None], (32, 32, 8)))
    with pytest.raises(DataError, match=rf"record 7 \(\S+/7/band_14.npy\): expected kelvin, 150 to 350 .*{message}"):
        read(tmp_path)


def test_one_frame_that_was_lost_is_refused(tmp_path: Path) -> None:
    kelvin = np.full((32, 32, 8), 280.0)
    kelvin[..., 4] = 0
    write_band(tmp_path, kelvin)
    with pytest.raises(DataError, match=r"values from 0\.0 to 0\.0 in frame 4"):
        read(tmp_path)


def test_single_pixels_may_be_hot_or_lost(tmp_path: Path) -> None:
    kelvin = np.full((32, 32, 8), 280.0)
    kelvin[3, 4], kelvin[5, 6] = 410, 90
    write_band(tmp_path, kelvin)
    packed = read(tmp_path)[:, 1] * 0.01 + 273.15
    assert np.abs(packed - kelvin[..., 3:5].transpose(2, 0, 1)).max() <= 0.0051


def test_records_to_predict_that_have_labels_are_told(tmp_path: Path) -> None:
    write_record(tmp_path, "test", "7", annotators=0, pixel_mask=False)
    write_record(tmp_path, "train", "7")
    told = "1 of 2 records of the split test have masks, and are packed with these labels"
    for split, expected in (("train", False), ("test", False)):
        plan = make_plan(tmp_path, split, (14,), (4,))
        assert any("have masks" in warning for warning in plan.warnings) == expected
    write_record(tmp_path, "test", "8", annotators=0)  # a pixel mask alone
    (warning,) = make_plan(tmp_path, "test", (14,), (4,)).warnings
    assert warning.startswith(told)
