import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import ndimage

from contrails.cli.data.demo import demo
from contrails.errors import DataError, StorageError
from contrails.sources.records import LABEL_FRAME, bands_of, find_records, read_bands, read_label
from contrails.synthetic.goes import Parameters, SynthRecord, make_dataset, make_record
from contrails.synthetic.sky import BANDS, draw_sky

SMALL = Parameters(train=4, validation=2, test=2, size=32, seed=3)
B14, B15 = BANDS.index(14), BANDS.index(15)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "raw"
    make_dataset(out, SMALL)
    return out


@pytest.fixture(scope="module")
def records() -> list[SynthRecord]:
    return [make_record(0, "train", index, 96) for index in range(30)]


def test_layout_is_the_competitions(made: Path) -> None:
    bands = {f"band_{band:02d}.npy" for band in BANDS}
    masks = {"human_individual_masks.npy", "human_pixel_masks.npy"}
    for split, count, files in (
        ("train", 4, bands | masks),
        ("validation", 2, bands | {"human_pixel_masks.npy"}),
        ("test", 2, bands),
    ):
        folders = list((made / split).iterdir())
        assert len(folders) == count
        for folder in folders:
            assert {path.name for path in folder.iterdir()} == files
            band = np.load(folder / "band_14.npy")
            assert (band.dtype, band.shape) == (np.float32, (32, 32, 8))
    ids = [path.name for path in sorted((made / "test").iterdir())]
    header, *rows = (made / "sample_submission.csv").read_text().splitlines()
    assert header == "record_id,encoded_pixels"
    assert sorted(row.split(",")[0] for row in rows) == ids


def test_truth_is_strictly_more_than_half(records: list[SynthRecord]) -> None:
    for record in records:
        assert 4 <= record.individual.shape[3] <= 6
        assert record.individual.dtype == record.pixel.dtype == np.int32
        assert (record.pixel == (2 * record.individual.sum(axis=3) > record.individual.shape[3])).all()
    assert any((2 * record.individual.sum(axis=3) == record.individual.shape[3]).any() for record in records)


def test_reader_takes_it(made: Path) -> None:
    found = find_records(made, "train")
    assert all(np.isfinite(record.timestamp) and record.group != record.record_id for record in found)
    assert bands_of(found[0]) == BANDS
    assert read_bands(found[0], BANDS, range(8)).shape == (8, 9, 32, 32)
    label = read_label(found[0], (32, 32))
    assert label is not None
    assert label.annotators >= 4
    assert read_label(find_records(made, "test")[0], (32, 32)) is None


def test_same_parameters_same_bytes(made: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path, SMALL)
    assert contents(tmp_path) == contents(made)


def test_record_does_not_depend_on_the_others(made: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path, dataclasses.replace(SMALL, train=2, validation=1))
    few, many = contents(tmp_path / "train"), contents(made / "train")
    assert few.items() <= many.items()


def test_another_seed_is_another_dataset() -> None:
    assert not np.array_equal(make_record(0, "train", 0, 32).bands, make_record(1, "train", 0, 32).bands)


def test_finished_records_are_kept_and_missing_ones_made(tmp_path: Path) -> None:
    make_dataset(tmp_path, SMALL)
    before = contents(tmp_path)
    kept, lost = sorted((tmp_path / "train").iterdir())[:2]
    inode = (kept / "band_08.npy").stat().st_ino
    lost.rename(lost.with_name(f".{lost.name}.123-01234567.tmp"))  # as a killed run leaves it
    make_dataset(tmp_path, SMALL)
    assert contents(tmp_path) == before
    assert (kept / "band_08.npy").stat().st_ino == inode


def test_other_parameters_are_refused(made: Path) -> None:
    with pytest.raises(
        DataError, match=r'demo dataset with .*"seed":4.*found one with .*"seed":3.*choose another folder'
    ):
        make_dataset(made, dataclasses.replace(SMALL, seed=4))


def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(DataError, match=r"expected an empty folder .* found other files"):
        make_dataset(tmp_path, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot write .*file/raw"):
        make_dataset(tmp_path / "file" / "raw", SMALL)


def test_labels_sit_half_a_pixel_down_right(records: list[SynthRecord]) -> None:
    score = {
        (down, right): sum(
            correlation(
                ndimage.shift(record.pixel[:, :, 0].astype(float), (down, right), order=1), split_window(record)
            )
            for record in records
            if record.pixel.any()
        )
        for down in (-1.0, -0.5, 0.0, 0.5)
        for right in (-1.0, -0.5, 0.0, 0.5)
    }
    assert max(score, key=lambda shift: score[shift]) == (-0.5, -0.5)


def test_about_half_are_empty_and_annotators_disagree(records: list[SynthRecord]) -> None:
    positive = [record for record in records if record.pixel.any()]
    assert 0.3 < len(positive) / len(records) < 0.7
    assert 0.003 < np.mean([record.pixel.mean() for record in records]) < 0.03
    agreement = [dice(record.individual[:, :, 0, 0], record.pixel[:, :, 0]) for record in positive]
    assert 0.6 < np.median(agreement) < 0.95


def test_contrails_stand_out_in_the_split_window(records: list[SynthRecord]) -> None:
    contrast = [split_window(record)[record.pixel[:, :, 0] > 0].mean() for record in records if record.pixel.any()]
    assert 0.1 < np.median(contrast) < 1.5  # kelvin above the surroundings; edges of the marks included


def test_contrails_drift_with_the_wind() -> None:
    rng = np.random.default_rng(5)
    sky = draw_sky(rng, np.full((64, 64), 290.0))  # ground without texture, which would stay where it is
    while not sky.contrails or np.hypot(*sky.wind) < 1.5:
        sky = draw_sky(rng, sky.ground)
    contrails = tuple(dataclasses.replace(contrail, birth=-9) for contrail in sky.contrails)
    alone = dataclasses.replace(sky, layers=(), contrails=contrails)
    now, later = (high_pass(alone.frame(frame, rng)[B14]) for frame in (LABEL_FRAME, LABEL_FRAME + 2))
    with_wind = ndimage.shift(now, 2 * np.array(sky.wind), order=1)
    against = ndimage.shift(now, -2 * np.array(sky.wind), order=1)
    assert correlation(with_wind, later) > 0.4
    assert correlation(with_wind, later) > correlation(now, later) + 0.1
    assert correlation(with_wind, later) > correlation(against, later) + 0.1


def test_records_of_a_tile_share_their_ground(tmp_path: Path) -> None:
    make_dataset(tmp_path, Parameters(train=40, validation=1, test=1, size=32, seed=0))
    rows = json.loads((tmp_path / "train_metadata.json").read_text())
    tiles = [(row["projection_wkt"], row["row_min"], row["col_min"]) for row in rows]
    warmest = [np.load(tmp_path / "train" / row["record_id"] / "band_14.npy").max(axis=2) for row in rows]
    alike: dict[bool, list[float]] = {True: [], False: []}
    for a in range(len(rows)):
        for b in range(a):
            alike[tiles[a] == tiles[b]].append(correlation(warmest[a], warmest[b]))
    assert len(alike[True]) >= 10
    assert np.median(alike[True]) > 0.4
    assert abs(np.median(alike[False])) < 0.2


def test_temperatures_resemble_real_ones(records: list[SynthRecord], real_data: Path) -> None:
    for index, band in enumerate(BANDS):
        real = [np.load(path)[..., LABEL_FRAME] for path in (real_data / "train").glob(f"*/band_{band:02d}.npy")]
        synthetic = [record.bands[index, ..., LABEL_FRAME] for record in records]
        assert abs(np.median(real) - np.median(synthetic)) < 10
        assert np.min(synthetic) > 180
        assert np.max(synthetic) < 320
    pairs = [
        (np.load(path), np.load(path.with_name("band_15.npy"))) for path in (real_data / "train").glob("*/band_14.npy")
    ]
    real_difference = np.median([np.median(b14 - b15) for b14, b15 in pairs])
    difference = np.median([np.median(record.bands[B14] - record.bands[B15]) for record in records])
    assert abs(real_difference - difference) < 1


def test_command(tmp_path: Path) -> None:
    arguments = ["--train", "1", "--validation", "1", "--test", "1", "--size", "32", "--seed", "7"]
    result = CliRunner().invoke(demo, [str(tmp_path / "raw"), *arguments])
    assert result.exit_code == 0, result.output
    assert "1 train, 1 validation and 1 test records of 32 x 32 pixels" in result.output
    assert len(list((tmp_path / "raw" / "train").iterdir())) == 1


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def high_pass(field: np.ndarray) -> np.ndarray:
    passed: np.ndarray = field - ndimage.gaussian_filter(field, 3)
    return passed


def split_window(record: SynthRecord) -> np.ndarray:
    return high_pass(record.bands[B14, ..., LABEL_FRAME] - record.bands[B15, ..., LABEL_FRAME])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    inside = (slice(4, -4), slice(4, -4))
    return float(np.corrcoef(a[inside].ravel(), b[inside].ravel())[0, 1])


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))
