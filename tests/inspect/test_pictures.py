"""Pictures of records: which ones, what is drawn of them, and where."""

import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from conftest import MakeRecipe
from image_files import write_raster
from matplotlib.image import imread

from contrails.dataset.pack import pack
from contrails.dataset.rle import DEFAULT
from contrails.dataset.store import IGNORE, Dataset, open_dataset
from contrails.errors import StorageError
from contrails.inspect.audit import Finding
from contrails.inspect.audit_page import write_page
from contrails.inspect.colours import colours_of
from contrails.inspect.contact import plot_augmentation
from contrails.inspect.pictures import columns, endings, plot_samples, sample_rows
from contrails.sources.goes import make_plan
from contrails.sources.images import make_plan as make_image_plan

from raw_records import write_record

Box = tuple[float, float, float, float]


def make(root: Path, split: str = "train", bands: tuple[int, ...] = (11, 14, 15), frame: int = 4) -> Dataset:
    pack(make_plan(root / "raw", split, bands, (frame,)), root / "d.h5", 1)
    return open_dataset(root / "d.h5")


def texts(dataset: Dataset, path: Path) -> list[str]:
    """Return what stands in the picture: records in their order, then the title."""
    with mpl.rc_context({"svg.fonttype": "none"}):
        plot_samples(dataset, path)
    return re.findall("<text[^>]*>([^<]*)</text>", path.read_text())


def box(mask: np.ndarray) -> Box:
    """Return top, bottom, left and right of what is true."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1)


@pytest.mark.parametrize(
    ("positive", "expected"),
    [
        ([0, 5, 0, 3], [1, 3, 0, 2]),
        ([0] * 4, [0, 1, 2, 3]),
        ([0, 1] * 12, [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]),
        ([1] * 23, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]),
        ([1, 0, 0, 0] * 11, [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 1]),
    ],
)
def test_positive_records_come_first_spread_over_the_file(positive: list[int], expected: list[int]) -> None:
    assert sample_rows(np.array(positive)).tolist() == expected


def test_records_are_named_with_their_pixels(tiny_data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(tiny_data / "train.h5")
    pixels = dataset.positive_pixels(range(12))
    expected = [(dataset.record_ids[row], f"{pixels[row]} positive pixels") for row in sample_rows(pixels)]
    *records, title, legend = texts(dataset, tmp_path / "p.svg")
    assert list(zip(records[::2], records[1::2], strict=True)) == expected
    assert title == "train.h5: 12 of 12 records of 'train', positive ones first; ash false colour, frame 4"
    assert legend == "magenta outline on the right: marked by more than half of the annotators"


def test_unlabelled_records_say_so(tiny_data: Path, tmp_path: Path) -> None:
    found = texts(open_dataset(tiny_data / "test.h5"), tmp_path / "p.svg")
    assert found[:-1] == ["2000", "unlabelled", "2001", "unlabelled", "2002", "unlabelled"]


def test_other_bands_and_frames_say_so(tmp_path: Path) -> None:
    write_record(tmp_path / "raw", "train", "1", bands=(9, 14))
    title = texts(make(tmp_path, bands=(9, 14), frame=2), tmp_path / "p.svg")[-2]
    assert title.endswith("b09, grey from 1% to 99%, frame 2 (labelled: frame 4)")


def test_ash_has_its_colours(tmp_path: Path) -> None:
    folder = write_record(tmp_path / "raw", "train", "1", positive=False)
    for band, kelvin in ((11, 280), (14, 280), (15, 281)):  # red 5/6, green 4/9, blue 37/60
        np.save(folder / f"band_{band}.npy", np.full((32, 32, 8), kelvin, np.float32))
    plot_samples(make(tmp_path), tmp_path / "p.png")
    image = imread(tmp_path / "p.png")
    for part in (0.25, 0.75):  # of the one beside the other
        middle = image[int(image.shape[0] * 0.6), int(image.shape[1] * part), :3]
        assert middle == pytest.approx([5 / 6, 4 / 9, 37 / 60], abs=0.01)


def test_the_outline_lies_on_what_was_marked(tmp_path: Path) -> None:
    """Labels sit half a pixel down-right of the image, so their outline is drawn half a pixel up-left."""
    folder = write_record(tmp_path / "raw", "train", "1", bands=(14,))
    truth = np.load(folder / "human_pixel_masks.npy")
    kelvin = np.where(truth == 1, 275, 250).astype(np.float32).repeat(8, axis=2)
    kelvin[:2, :8] = 300
    np.save(folder / "band_14.npy", kelvin)
    plot_samples(make(tmp_path, bands=(14,)), tmp_path / "p.png")
    image = imread(tmp_path / "p.png")[..., :3]
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    panel = np.zeros(red.shape, bool)
    dark = np.flatnonzero((image.max(axis=2) < 0.1).mean(axis=1) > 0.4)  # the ground; titles are less dark
    panel[dark[0] : dark[-1], image.shape[1] // 2 :] = True  # the right view
    line = box(panel & (np.abs(red - 0.5) < 0.05) & (np.ptp(image, axis=2) < 0.02))
    magenta = (red > 0.9) & (green < 0.3) & (blue > 0.9)
    assert not (magenta & ~panel).any()  # the left view shows what the outline covers
    outline = box(magenta)
    scale = (line[3] - line[2]) / 24  # the line is 24 pixels of the image long
    # a line of 0.7 points is 1.5 pixels wide, of which half lies outside
    assert (np.array(outline) - line) / scale == pytest.approx([-0.5, -0.5, -0.5, -0.5], abs=0.12)


@pytest.fixture
def padded(tmp_path: Path) -> Dataset:
    """Two images, of which the smaller one is positive everywhere."""
    image = np.random.default_rng(0).integers(0, 255, (32, 48), np.uint8)
    write_raster(tmp_path / "raw/train/large.png", image)
    write_raster(tmp_path / "raw/train/small.png", image[:20, :30])
    (tmp_path / "raw/train.csv").write_text("record_id,encoded_pixels\nlarge,-\nsmall,1 600\n")
    pack(make_image_plan(tmp_path / "raw", "train", DEFAULT), tmp_path / "padded.h5", 1)
    return open_dataset(tmp_path / "padded.h5")


def test_padding_is_neither_shown_nor_outlined(padded: Dataset, recipe_with: MakeRecipe, tmp_path: Path) -> None:
    assert (padded.votes[1] == IGNORE).sum() == 32 * 48 - 20 * 30
    assert colours_of(padded, 1, 0).shape == (20, 30)
    plot_samples(padded, tmp_path / "p.svg")
    assert "stroke: #ff00ff" not in (tmp_path / "p.svg").read_text()
    plot_augmentation(padded, recipe_with(data={"composite": "bands"}), tmp_path / "sheet.svg")
    assert "stroke: #ff00ff" not in (tmp_path / "sheet.svg").read_text()
    guess = {"small": np.full((32, 48), 9, np.uint16)}
    write_page(tmp_path / "audit.html", padded, [Finding("tiny", "", (1,), ())], guess, 5, "")
    plain, outlined = re.findall('src="([^"]*)"', (tmp_path / "audit.html").read_text())
    assert plain == outlined


def test_the_picture_of_real_records(real_data: Path, tmp_path: Path) -> None:
    pack(make_plan(real_data, "train", (11, 14, 15), (4,)), tmp_path / "d.h5", 2)
    dataset = open_dataset(tmp_path / "d.h5")
    assert plot_samples(dataset, tmp_path / "p.png") == min(12, dataset.num_records)
    assert imread(tmp_path / "p.png").std() > 0.1


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(1, 3, 1), (2, 3, 2), (4, 3, 2), (6, 3, 3), (8, 3, 2), (12, 3, 3), (12, 4, 4), (7, 4, 4), (5, 4, 3)],
)
def test_few_places_stay_empty(count: int, most: int, expected: int) -> None:
    assert columns(count, most) == expected


@pytest.mark.parametrize("ending", ["png", "PNG", "jpg", "pdf", "svg"])
def test_the_ending_says_the_format(tiny_data: Path, tmp_path: Path, ending: str) -> None:
    assert ending.lower() in endings()
    plot_samples(open_dataset(tiny_data / "test.h5"), tmp_path / f"p.{ending}")
    begin = {"png": b"\x89PNG", "jpg": b"\xff\xd8", "pdf": b"%PDF", "svg": b"<?xml"}[ending.lower()]
    assert (tmp_path / f"p.{ending}").read_bytes().startswith(begin)
    assert [path.name for path in tmp_path.iterdir()] == [f"p.{ending}"]


def test_a_folder_that_cannot_be_written_is_said(tiny_data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*p.png"):
        plot_samples(open_dataset(tiny_data / "test.h5"), tmp_path / "file" / "p.png")
