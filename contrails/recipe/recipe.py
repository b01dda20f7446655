"""A recipe: the data, model, loss and training of one experiment, read from TOML and changed by dotted overrides.

Reads recipe files (`jobs/*.toml`) and the frozen copy in a run folder. Every key is a field of a section, with its
description; `contrails recipe schema` prints them. Unknown keys and impossible values are refused before a job is
submitted.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import Field, model_validator

from contrails.errors import RecipeError, choices
from contrails.files import read_toml
from contrails.recipe.augment import MIXING, TEMPORAL, AugmentSection
from contrails.recipe.base import Section
from contrails.recipe.data import DataSection
from contrails.recipe.loss import LossSection
from contrails.recipe.model import ModelSection
from contrails.recipe.reading import keys, parse
from contrails.recipe.train import SnapshotSection, TrainSection


class InitSection(Section):
    """The initial weights: random, or those of the same fold of another run."""

    run: Path | None = Field(
        None, description="run to start from: fold k starts from its fold k; empty: random weights"
    )
    weights: Literal["best", "final", "swa", "ema"] = Field("best", description="which weights of that fold")


class Recipe(Section):
    """The recipe of one experiment."""

    seed: int = Field(0, ge=0, description="seed of every random draw of the run")
    data: DataSection
    model: ModelSection = ModelSection()
    loss: LossSection = LossSection()
    augment: AugmentSection = AugmentSection()
    train: TrainSection = TrainSection()
    snapshot: SnapshotSection = SnapshotSection()
    init: InitSection = InitSection()

    @model_validator(mode="after")
    def _can_be_augmented(self) -> Self:
        kinds, pieces = self.augment.kinds, self.train.accumulate
        mixing = [kind for kind in MIXING if kind in kinds]
        if mixing and self.train.batch_size < 2 * pieces:
            raise ValueError(
                f"augment.{mixing[0]} combines samples of a batch: expected at least train.batch_size = {2 * pieces} "
                f"with train.accumulate = {pieces}, found train.batch_size = {self.train.batch_size}"
            )
        temporal = [kind for kind in TEMPORAL if kind in kinds]
        if temporal and len(self.data.frames) < 2:
            raise ValueError(
                f"augment.{temporal[0]} needs several frames, found data.frames = {list(self.data.frames)}; give some, "
                "such as data.frames = [3, 4, 5], or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _heads_for_losses(self) -> Self:
        """Refuse losses on heads that the model does not have."""
        model, loss = self.model, self.loss
        for key, is_asked, has_head, wanted in (
            ("loss.classes", loss.classes is not None, model.classifier, "model.classifier = true"),
            ("loss.share", loss.share is not None, model.share, "model.share = true"),
            ("loss.aux", loss.aux is not None, model.deep_supervision > 0, "model.deep_supervision = 1 or more"),
            ("loss.gate", loss.gate, model.classifier, "model.classifier = true"),
        ):
            if is_asked and not has_head:
                raise ValueError(f"{key} needs a head that the model does not have; set {wanted}, or leave {key} out")
        for term in loss.terms:
            if term.name == "softmax_ce" and model.logits != 2:
                raise ValueError("loss.terms: softmax_ce needs two logits; set model.logits = 2, or choose bce")
            if term.head is not None and term.head >= (model.heads if model.heads > 1 else 0):
                raise ValueError(
                    f"loss.terms: {term.name} has head = {term.head} and model.heads = {model.heads}; expected a head "
                    "from 0 to model.heads - 1, and several heads"
                )
        return self

    @model_validator(mode="after")
    def _frames_to_merge(self) -> Self:
        merge, frames = self.model.temporal.merge, self.data.frames
        if merge != "channels" and len(frames) < 2:
            raise ValueError(
                f"model.temporal.merge = '{merge}' needs several frames, found data.frames = {list(frames)}; give "
                "some, such as data.frames = [3, 4, 5], or choose merge = 'channels'"
            )
        return self


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from TOML and apply overrides.

    Args:
        path: the TOML file.
        overrides: `key=value`, such as `train.lr=3e-4`; `key=` restores the default.

    Raises:
        RecipeError: no such file, no TOML, an unknown key or an impossible value; all of them are named.
    """
    values = read_toml(path, "a recipe")
    return parse(Recipe, values, str(path), _apply_all(values, overrides))


def override(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return a copy of a recipe with `key=value` overrides applied.

    Raises:
        RecipeError: as `load_recipe`.
    """
    values = recipe.model_dump(mode="json", exclude_none=True)
    return parse(Recipe, values, "the recipe", _apply_all(values, overrides))


def to_toml(section: Section, **more: Any) -> str:
    """Return a section as TOML, with the tables `more`; None is left out, as TOML has no null."""
    return tomli_w.dumps(section.model_dump(mode="json", exclude_none=True) | more)


def _apply_all(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, str]:
    """Apply overrides to `values` in place; return each override by its key."""
    return {_apply(values, override): override for override in overrides}


def _apply(values: dict[str, Any], override: str) -> str:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"override '{override}': expected key=value, such as train.lr=3e-4")
    *tables, last = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise RecipeError(
                f"override '{override}': expected a table {table}, found a value; {choices(key, _names(Recipe))}"
            )
    if not text.strip() and key.strip() in _names(Recipe):
        values.pop(last, None)
    else:
        values[last] = _toml_value(text.strip())
    return key.strip()


def _toml_value(text: str) -> Any:
    try:
        read = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text  # a bare word or a path: -o model.encoder=resnet34 needs no nested quotes
    # a text of several lines could define further keys, so it is not parsed
    return read["value"] if len(read) == 1 else text


def _names(section: type[Section]) -> list[str]:
    return [name for name, _ in keys(section)]
