"""Which layout a folder looks like, where a split has a folder of its own."""

from pathlib import Path

import numpy as np
import pytest
from image_files import write_raster

from contrails.cli.main import cli
from contrails.dataset.store import open_dataset
from contrails.errors import DataError
from contrails.sources.guess import looks_like

GREY = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32).astype(np.uint8)


def test_scenes_in_the_folder_of_a_split_are_no_images_with_a_table(tmp_path: Path) -> None:
    write_raster(tmp_path / "clouds/train/images/a.png", GREY)
    assert looks_like(tmp_path / "clouds", "train") == ["--layout=images-rle"]
    write_raster(tmp_path / "clouds/train/masks/a.png", GREY % np.uint8(2))
    options = looks_like(tmp_path / "clouds", "train")
    command = ["prepare", str(tmp_path / "clouds"), str(tmp_path / "d.h5"), *options, "--tile=32", "--overlap=0"]
    cli(command, standalone_mode=False)
    assert open_dataset(tmp_path / "d.h5").num_records == 1
    (tmp_path / "clouds/train/filelists").mkdir()
    assert looks_like(tmp_path / "clouds", "train") == []


def test_a_folder_without_bands_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "train/filelists").mkdir(parents=True)
    with pytest.raises(
        DataError, match=r"filelists: expected the folder of a record, with files such as band_\d\d.npy"
    ):
        cli(["prepare", str(tmp_path), str(tmp_path / "d.h5")], standalone_mode=False)
