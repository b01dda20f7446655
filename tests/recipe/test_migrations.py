"""Recipes that earlier versions have frozen, read by today's code."""

from typing import Any

import pytest
from conftest import MakeRun

from contrails.errors import RecipeError
from contrails.recipe.migrations import MIGRATIONS, migrated
from contrails.recipe.recipe import override


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"model": {"relu_features": True}}, {"model": {"relu_features": "add"}}),
        ({"model": {"relu_features": False}}, {"model": {"relu_features": "own"}}),
        ({"model": {"relu_features": "remove"}}, {"model": {"relu_features": "remove"}}),
        ({"train": {"freeze_encoder_epochs": 2, "lr": 0.1}}, {"train": {"freeze": {"encoder": 2}, "lr": 0.1}}),
        ({"train": {"freeze_encoder_epochs": 0}}, {"train": {"freeze": {}}}),
        ({"seed": 1}, {"seed": 1}),
    ],
)
def test_old_words_become_new_ones(old: dict[str, Any], new: dict[str, Any]) -> None:
    before = repr(old)
    assert migrated(old) == new
    assert repr(old) == before


def test_a_run_of_an_earlier_version_is_read_and_what_is_asked_now_is_not_migrated(make_run: MakeRun) -> None:
    run = make_run(model={"encoder": "tu-test_convnext"})
    text = run.toml.read_text()
    assert 'relu_features = "own"' in text
    run.toml.write_text(text.replace('relu_features = "own"', "relu_features = true"))
    recipe = run.read_config().recipe
    assert recipe.model.relu_features == "add"
    with pytest.raises(RecipeError, match=r"model\.relu_features"):
        override(recipe, ["model.relu_features=true"])
    assert {migration.key for migration in MIGRATIONS} >= {"model.relu_features", "train.freeze_encoder_epochs"}
