"""Folders of raw files: links are followed, loops and dead links refused, what is no data is skipped and named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import write_raster

from contrails.cli.main import cli
from contrails.dataset.store import open_dataset
from contrails.errors import DataError

from raw_records import write_record

GREY = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32).astype(np.uint8)
LEFT_BEHIND = (".DS_Store", "Thumbs.db", ".ipynb_checkpoints/x.png", "__MACOSX/x.png", "._x.png")


def prepare(raw: Path, layout: str) -> tuple[str, ...]:
    """Return the ids that are packed."""
    out = raw / "d.h5"
    cli(["prepare", str(raw), str(out), f"--layout={layout}", "--workers=1", "--split=test"], standalone_mode=False)
    return open_dataset(out).record_ids


def _goes(raw: Path) -> Path:
    write_record(raw, "test", "a", annotators=0, pixel_mask=False)
    write_record(raw / "elsewhere", "more", "b", annotators=0, pixel_mask=False)
    (raw / "test/b").symlink_to(raw / "elsewhere/more/b")
    return raw / "test"


def _images(raw: Path) -> Path:
    write_raster(raw / "test/one/a.png", GREY)
    write_raster(raw / "elsewhere/deeper/b.png", GREY)
    (raw / "test/two").symlink_to(raw / "elsewhere")
    return raw / "test"


def _scenes(raw: Path) -> Path:
    write_raster(raw / "elsewhere/a.png", GREY)
    write_raster(raw / "elsewhere/b.png", GREY)
    (raw / "scenes").symlink_to(raw / "elsewhere")
    return raw / "scenes"


LAYOUTS = pytest.mark.parametrize(("layout", "make"), [("goes", _goes), ("images-rle", _images), ("scenes", _scenes)])


@LAYOUTS
def test_what_lies_behind_links_is_packed(tmp_path: Path, layout: str, make: Callable[[Path], Path]) -> None:
    make(tmp_path)
    names = ("a", "b") if layout != "scenes" else ("a_r00000_c00000", "b_r00000_c00000")
    assert prepare(tmp_path, layout) == names


@LAYOUTS
def test_what_is_no_data_is_skipped_and_named(
    tmp_path: Path, layout: str, make: Callable[[Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    folder = make(tmp_path)
    for name in LEFT_BEHIND:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"none of the data")
    assert len(prepare(tmp_path, layout)) == 2
    first = ", ".join(str(folder / name) for name in (".DS_Store", "._x.png", ".ipynb_checkpoints"))
    assert f"skipped, because they are no data: {first} and 2 more" in caplog.messages


@pytest.mark.parametrize(("layout", "make"), [("images-rle", _images), ("scenes", _scenes)])
def test_a_loop_of_links_is_refused(tmp_path: Path, layout: str, make: Callable[[Path], Path]) -> None:
    folder = make(tmp_path)
    (tmp_path / "elsewhere/again").symlink_to(folder, target_is_directory=True)
    with pytest.raises(DataError, match=r"again is a link to \S+, a folder that contains it; remove the link"):
        prepare(tmp_path, layout)


@LAYOUTS
def test_a_link_to_nothing_is_refused(tmp_path: Path, layout: str, make: Callable[[Path], Path]) -> None:
    (make(tmp_path) / "more").symlink_to("/gone/away")
    with pytest.raises(DataError, match="more is a link to /gone/away, which does not exist; correct or remove"):
        prepare(tmp_path, layout)


def test_endings_that_are_not_known_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _images(tmp_path)
    (tmp_path / "test/one/c.gif").write_bytes(b"GIF89a")
    prepare(tmp_path, "images-rle")
    assert f"left out, because their endings are unknown: {tmp_path}/test/one/c.gif" in caplog.messages


@pytest.mark.parametrize("options", [[], ["--scenes={scene}", "--masks="]])
def test_scenes_that_are_not_packed_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: list[str]
) -> None:
    raw = tmp_path / "raw"
    folder = raw if options else raw / "scenes"
    write_raster(folder / "a.png", GREY)
    write_raster(folder / "deeper/b.png", GREY)
    write_raster(tmp_path / "elsewhere/c.png", GREY)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "d.gif").write_bytes(b"GIF89a")
    (folder / "a.png.aux.xml").write_text("<PAMDataset/>")
    if not options:
        for name in "ae":
            write_raster(raw / f"masks/{name}.png", GREY % 2)
    arguments = ["--layout=scenes", "--workers=1", "--split=test", "--tile=32", "--overlap=0", *options]
    cli(["prepare", str(raw), str(tmp_path / "d.h5"), *arguments], standalone_mode=False)
    said = "--scenes says" if options else "--scenes and --masks say"
    left_out = f"left out, because they are not where {said} (move them there)"
    assert f"{left_out}: {folder}/deeper/b.png, {folder}/linked/c.png" in caplog.messages
    assert f"left out, because their endings are unknown: {folder}/d.gif" in caplog.messages
    assert (f"masks without a scene: {raw}/masks/e.png" in caplog.messages) == (not options)


def test_a_link_to_itself_is_named(tmp_path: Path) -> None:
    (_scenes(tmp_path) / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=r"scenes/loop is a link to loop, which does not exist; correct or remove"):
        prepare(tmp_path, "scenes")


def test_one_folder_under_two_names_is_found_twice(tmp_path: Path) -> None:
    _images(tmp_path)
    (tmp_path / "test/three").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        DataError, match=r"one image per id, found two of b: \S+/three/deeper/b.png and \S+/two/deeper/b.png"
    ):
        prepare(tmp_path, "images-rle")
