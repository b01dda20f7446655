"""One scene from a file to a file: what a kill leaves, and how it goes on."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from conftest import TINY_MODEL
from hypothesis import given
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC

from contrails.aggregate.ensemble import Ensemble, Member
from contrails.aggregate.options import Options
from contrails.aggregate.output import scene
from contrails.aggregate.output.scene import Tiling, predict_scene
from contrails.aggregate.output.scene_files import Kind, scene_file
from contrails.aggregate.output.strips import StripFile
from contrails.cli.main import cli
from contrails.dataset.layout import Values
from contrails.dataset.store import Dataset, Placement, open_dataset
from contrails.errors import DataError, RunError, StorageError
from contrails.inputs.composites import Channel, Composite
from contrails.locks import sole_writer
from contrails.models.build import build_model
from contrails.models.weights import save_weights
from contrails.recipe.recipe import Recipe
from contrails.sources.rasters import Raster
from contrails.sources.tiles import Strip, starts

BANDS = ("red", "green", "blue")


@pytest.fixture
def ensemble(tmp_path: Path) -> Ensemble:
    torch.manual_seed(0)
    recipe = Recipe.model_validate({"data": {"dataset": "d.h5", "filelist": "f.csv"}, "model": TINY_MODEL})
    composite = Composite(tuple(Channel({band: 1.0}) for band in BANDS))
    about = {"recipe": recipe.model_dump(mode="json"), "composite": composite.to_dict(), "num_channels": 3}
    save_weights(tmp_path / "member.safetensors", build_model(recipe, 3).state_dict(), about)
    member = Member("member.safetensors", "digest", "run", "0", "best", [1], [], None, 0.5, 1.0)
    return Ensemble(tmp_path, (member,), Options(), 0.5, (), {}, True, "1 of 1 folds", {}, {})


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "scene.npy"
    np.save(path, np.random.default_rng(0).integers(1, 256, (150, 70, 3), np.uint8))
    return path


def predict(ensemble: Ensemble, image: Path, out: str, cut: Tiling) -> bytes:
    path = image.parent / out
    predict_scene(ensemble, image, path, "probabilities", cut, BANDS, torch.device("cpu"))
    return path.read_bytes()


def _points(file: Any) -> None:
    corners = ((0, 0, 7.0, 50.0), (0, 70, 7.5, 50.1), (150, 0, 7.1, 49.0), (150, 70, 7.6, 49.1))
    file.gcps = [GroundControlPoint(*corner, z=3.0) for corner in corners], rasterio.CRS.from_epsg(4326)


def _polynomials(file: Any) -> None:
    ones = [1.0] + 19 * [0.0]
    file.rpcs = RPC(10.0, 500.0, 50.0, 1.0, ones, [0.0, 0.5, *18 * [0.0]], 75.0, 75.0, 7.0, 1.0, ones, ones, 35.0, 35.0)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
@pytest.mark.parametrize("place", [_points, _polynomials])
@pytest.mark.parametrize("kind", ["tif", "probabilities"])
def test_control_points_are_kept(ensemble: Ensemble, tmp_path: Path, place: Callable[[Any], None], kind: Kind) -> None:
    bands = np.random.default_rng(0).integers(1, 256, (3, 150, 70), np.uint8)
    (tmp_path / "scenes").mkdir()
    profile = {"driver": "GTiff", "count": 3, "height": 150, "width": 70, "dtype": "uint8"}
    path = tmp_path / "scenes/a.tif"
    with rasterio.open(path, "w", **profile) as file:
        file.write(bands)
        place(file)
    predict_scene(ensemble, path, tmp_path / "scene.tif", kind, Tiling((64, 64), 8), BANDS, torch.device("cpu"))
    prepared = ["--layout=scenes", "--split=test", "--tile=64", "--overlap=8", "--workers=1"]
    cli(["prepare", str(tmp_path), str(tmp_path / "d.h5"), *prepared], standalone_mode=False)
    (scene,) = open_dataset(tmp_path / "d.h5").scenes
    with scene_file(tmp_path / "tiles.tif", scene, kind) as write:
        write(0, np.zeros((150, 70), np.uint16 if kind == "probabilities" else np.uint8))
    with rasterio.open(path) as source:
        for name in ("scene.tif", "tiles.tif"):
            with rasterio.open(tmp_path / name) as found:
                assert [point.asdict() for point in found.gcps[0]] == [point.asdict() for point in source.gcps[0]]
                assert found.gcps[1] == source.gcps[1]
                assert found.rpcs == source.rpcs


def interrupt_after(count: int) -> Callable[[StripFile, Strip], None]:
    """Return what keeps a number of strips and then is interrupted, in the midst of the next one."""
    original, calls = StripFile.keep, [0]

    def keep(kept: StripFile, strip: Strip) -> None:
        original(kept, strip)
        calls[0] += 1
        if calls[0] > count:
            with kept.path.open("rb+") as file:
                file.truncate(kept.path.stat().st_size - 7)
            raise KeyboardInterrupt

    return keep


@pytest.mark.parametrize("overlap", [0, 8, 24])
@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_scene_that_was_interrupted_goes_on_below_its_last_strip(
    ensemble: Ensemble, image: Path, monkeypatch: pytest.MonkeyPatch, overlap: int, count: int
) -> None:
    cut = Tiling((32, 32), overlap)
    undisturbed = predict(ensemble, image, "undisturbed.tif", cut)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StripFile, "keep", interrupt_after(count))
        predict(ensemble, image, "scene.tif", cut)
    assert not image.with_name("scene.tif").exists()
    image.with_name(".scene.tif.7-0123abcd.tmp").touch()  # of a process that was killed
    first_rows: list[int] = []
    original = scene._tiles

    def tiles(raster: Raster, values: Values, placements: list[Placement], size: tuple[int, int]) -> Dataset:
        first_rows.append(placements[0].row)
        return original(raster, values, placements, size)

    monkeypatch.setattr(scene, "_tiles", tiles)
    assert predict(ensemble, image, "scene.tif", cut) == undisturbed
    rows = starts(150, 32, overlap)
    assert min(first_rows) == min(row for row in rows if row + 32 > rows[count])
    assert sorted(path.name for path in image.parent.iterdir()) == [
        "member.safetensors", "scene.npy", "scene.tif", "scene.tif.json", "undisturbed.tif", "undisturbed.tif.json",
    ]  # fmt: skip


def test_a_scene_whose_strips_are_all_there_is_not_predicted_again(
    ensemble: Ensemble, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = predict(ensemble, image, "undisturbed.tif", Tiling((32, 32), 8))
    original = scene._write

    def write(*arguments: Any) -> None:
        original(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scene, "_write", write)
        predict(ensemble, image, "new/scene.tif", Tiling((32, 32), 8))
    monkeypatch.delattr(scene, "_tiles")
    assert predict(ensemble, image, "new/scene.tif", Tiling((32, 32), 8)) == undisturbed


def test_strips_of_another_scene_are_not_used(ensemble: Ensemble, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StripFile, "keep", interrupt_after(2))
        predict(ensemble, image, "scene.tif", Tiling((32, 32), 8))
    np.save(image, np.load(image)[::-1])
    cut = Tiling((32, 32), 8)
    assert predict(ensemble, image, "scene.tif", cut) == predict(ensemble, image, "fresh.tif", cut)


def test_two_at_once_are_refused(ensemble: Ensemble, image: Path) -> None:
    with sole_writer(image.with_name(".scene.tif.strips"), "busy"), pytest.raises(RunError, match="another process"):
        predict(ensemble, image, "scene.tif", Tiling((32, 32), 8))


@pytest.mark.parametrize("kind", ["tif", "png"])
def test_a_disk_that_is_full_when_the_file_is_closed(
    ensemble: Ensemble, image: Path, tmp_path: Path, kind: Kind
) -> None:
    """The strips fit, and GDAL tells nobody that its last blocks did not."""
    np.save(image, np.random.default_rng(0).integers(1, 256, (600, 500, 3), np.uint8))
    small = tmp_path / "small"
    small.mkdir()
    # strips take 2.125 bytes a pixel and fill 156 pages
    mount = ["mount", "-t", "tmpfs", "-o", "size=628k", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs root to mount a small tmpfs")
    try:
        with pytest.raises(StorageError, match=f"cannot write .*out.{kind}: .*; check the free space"):
            predict_scene(
                ensemble, image, small / f"out.{kind}", kind, Tiling((128, 128), 32), BANDS, torch.device("cpu")
            )
        assert [path.name for path in small.iterdir()] == [f".out.{kind}.strips"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_bad_data_leave_nothing(ensemble: Ensemble, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: object) -> None:
        raise DataError("damaged")

    monkeypatch.setattr(scene, "read", damaged)
    with pytest.raises(DataError, match="damaged"):
        predict(ensemble, image, "scene.tif", Tiling((32, 32), 8))
    assert sorted(path.name for path in image.parent.iterdir()) == ["member.safetensors", "scene.npy"]


@given(cut_at=st.integers(0, 400), flip=st.integers(0, 400))
def test_what_is_damaged_and_what_comes_after_it_is_not_read(
    tmp_path_factory: pytest.TempPathFactory, cut_at: int, flip: int
) -> None:
    kept = StripFile(tmp_path_factory.mktemp("strips") / "strips", 5, {"of": "a scene"})
    random = np.random.default_rng(0)
    heights = (3, 4, 1)
    strips = [
        Strip(sum(heights[:i]), random.integers(0, 65536, (rows, 5), np.uint16), random.random((rows, 5)) > 0.5)
        for i, rows in enumerate(heights)
    ]
    assert list(kept.read()) == []
    for strip in strips:
        kept.keep(strip)
    content = bytearray(kept.path.read_bytes())
    if flip < len(content):
        content[flip] ^= 4
    kept.path.write_bytes(content[: len(content) - cut_at] if cut_at < len(content) else b"")
    read = list(kept.read())
    for found, expected in zip(read, strips, strict=False):
        assert found.row == expected.row
        assert np.array_equal(found.values, expected.values)
        assert np.array_equal(found.predicted, expected.predicted)
    for strip in strips[len(read) :]:  # what is missing can be added, and all of it is there then
        kept.keep(strip)
    assert len(list(kept.read())) == 3
