"""Contact sheets: one line for each kind of change, drawn from the real batches."""

from pathlib import Path

import click
import pytest
from conftest import MakeRecipe
from PIL import Image

from contrails.cli.main import cli
from contrails.dataset.store import Dataset, open_dataset
from contrails.errors import DataError, RecipeError
from contrails.inspect.contact import plot_augmentation
from contrails.recipe.augment import AugmentSection, Kind

ALL_CHANGES = {name: {"probability": 0.6} for name, kind in AugmentSection() if isinstance(kind, Kind)}


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_a_sheet_has_a_line_for_each_kind(framed: Dataset, recipe_with: MakeRecipe, tmp_path: Path) -> None:
    few, many = tmp_path / "few.png", tmp_path / "many.png"
    data = {"frames": [3, 4, 5], "composite": "bands", "normalise": "mean_std", "crop": 32}
    assert plot_augmentation(framed, recipe_with(data=data), few) == 6
    assert plot_augmentation(framed, recipe_with(data=data, augment=ALL_CHANGES), many) == 6
    line = size(few)[1] / 5  # original, dihedral, and three as trained on
    assert size(many)[1] / line == pytest.approx(5 + len(ALL_CHANGES), rel=0.1)
    again = tmp_path / "again.png"
    plot_augmentation(framed, recipe_with(data=data, augment=ALL_CHANGES), again)
    assert again.read_bytes() == many.read_bytes()


def test_a_sheet_of_what_does_not_fit_is_refused(tiny_data: Path, recipe_with: MakeRecipe, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    with pytest.raises(
        DataError, match=r"test.h5: expected labelled records, found none; give a dataset file of training records"
    ):
        plot_augmentation(open_dataset(tiny_data / "test.h5"), recipe_with(), sheet)
    with pytest.raises(RecipeError, match=r"data.crop = 64: .* the records of .*, 32 x 32 pixels"):
        plot_augmentation(open_dataset(tiny_data / "train.h5"), recipe_with(data={"crop": 64}), sheet)
    assert not list(tmp_path.iterdir())


def test_recipe_show_writes_a_sheet(tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, sheet = tmp_path / "r.toml", tmp_path / "sheet.png"
    recipe.write_text(f'[data]\ndataset = "{tiny_data / "train.h5"}"\nfilelist = "{tiny_data / "three.csv"}"\n')
    arguments = ["recipe", "show", str(recipe), "-o", "augment.mixup.probability=1", "--augment"]
    cli([*arguments, str(sheet)], standalone_mode=False)
    assert capsys.readouterr() == ("", f"{sheet}: 6 records\n")
    assert size(sheet)[0] > 100
    with pytest.raises(click.BadParameter, match=r"expected the file name of a picture, found the ending '.txt'"):
        cli([*arguments, str(tmp_path / "sheet.txt")], standalone_mode=False)
