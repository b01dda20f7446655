"""Checks of the record sizes that a recipe's network accepts, from the tables of `contrails.models.names`."""

import math
from collections.abc import Iterator

from contrails.errors import RecipeError
from contrails.models.names import Encoder, find_architecture, find_encoder, output_stride
from contrails.recipe.model import ModelSection
from contrails.recipe.recipe import Recipe


def require_size(recipe: Recipe, height: int, width: int) -> None:
    """Check that a model accepts records of a size, their windows, and the number of records in a piece.

    Raises:
        RecipeError: it does not; the message says which size it accepts.
    """
    section, encoder = recipe.model, find_encoder(recipe.model.encoder)
    for seen in {_seen(recipe, height, width), _seen_in_training(recipe, height, width)}:
        _require_side_of_encoder(recipe, encoder, seen)
        if section.task == "segment":
            _require_side_of_decoder(section, seen)
    require_piece(recipe, height, width)


def require_piece(recipe: Recipe, height: int, width: int, num_ranks: int = 1, step: int | None = None) -> None:
    """Check that batch norm gets more than one value per channel in the smallest piece of a step.

    Args:
        recipe: the recipe.
        height: height of the records, in pixels.
        width: width of the records, in pixels.
        num_ranks: number of ranks that share a step.
        step: records of the smallest step; None for `train.batch_size`.

    Raises:
        RecipeError: it gets a single value; the message says what to change.
    """
    train = recipe.train
    if train.sync_batch_norm:
        num_ranks = 1  # the ranks share their statistics
    if (train.batch_size if step is None else step) // (train.accumulate * num_ranks) > 1:
        return
    seen = _seen_in_training(recipe, height, width)
    coarsest = max(seen) // _coarsest_stride(recipe.model)
    for what, alone_px, key in _batch_norms(recipe):
        if alone_px is not None and coarsest >= alone_px:
            continue
        found = f"train.batch_size = {train.batch_size} with train.accumulate = {train.accumulate}"
        found += f" on {num_ranks} ranks" if num_ranks > 1 else ""
        if step is not None:
            found += f" and train.drop_last = {str(train.drop_last).lower()}, which make a step of {step}"
        of_size = "" if alone_px is None else f" of {seen[0]} x {seen[1]} pixels"
        raise RecipeError(
            f"{what} has batch norm on one value per record{of_size}: expected at least 2 records in a piece, found "
            f"{found}; change one of these, or set {key} = 'group'"
        )


def _batch_norms(recipe: Recipe) -> Iterator[tuple[str, int | None, str]]:
    """Yield the modules with batch norm: their name, the smallest side to train with one record, and a recipe key.

    The side is that of the coarsest feature (None: no side is enough). The recipe key replaces the norms.
    """
    section, encoder = recipe.model, find_encoder(recipe.model.encoder)
    epochs = recipe.train.epochs
    is_frozen = epochs is not None and recipe.train.freeze.get("encoder", 0) >= epochs
    if section.encoder_norm == "own" and not section.temporal.merges_features and not is_frozen:
        yield f"model.encoder = '{encoder.name}'", encoder.alone_px, "model.encoder_norm"
    if section.norm != "batch":
        return
    if section.temporal.merge == "conv3d" and section.encoder_depth in (
        section.temporal.levels or (section.encoder_depth,)
    ):
        yield "model.temporal.merge = 'conv3d'", 2, "model.norm"
    if section.task == "segment":
        name, entry = find_architecture(section.architecture)
        norm = section.decoder_options.get("decoder_use_norm", "batchnorm")
        yield f"model.architecture = '{name}'", entry["alone_px"][norm], "model.norm"


def padded(section: ModelSection, side: int) -> int:
    """Return a side after padding to the next multiple of the network's stride, in pixels."""
    of_dpt = 32 if section.architecture.lower() == "dpt" else 1
    multiple = math.lcm(2**section.encoder_depth, find_encoder(section.encoder).patch_px or of_dpt)
    return -(-side // multiple) * multiple


def panel_grid(num_frames: int) -> tuple[int, int]:
    """Return the rows and columns of the panels of frames, as nearly square as their number allows."""
    rows = max(rows for rows in range(1, math.isqrt(num_frames) + 1) if num_frames % rows == 0)
    return rows, num_frames // rows


def _seen(recipe: Recipe, height: int, width: int) -> tuple[int, int]:
    """Return the size of the encoder's input for a record or window of a size."""
    section = recipe.model
    height, width = (height, width) if recipe.data.size is None else (recipe.data.size,) * 2
    rows, columns = panel_grid(len(recipe.data.frames)) if section.temporal.merge == "panels" else (1, 1)
    return rows * padded(section, height), columns * padded(section, width)


def _seen_in_training(recipe: Recipe, height: int, width: int) -> tuple[int, int]:
    return _seen(recipe, *((height, width) if recipe.data.crop is None else (recipe.data.crop,) * 2))


def _coarsest_stride(section: ModelSection) -> int:
    """Return the stride of the coarsest feature that a network uses."""
    stride: int = 2**section.encoder_depth
    if section.task == "segment":
        stride = min(stride, output_stride(section, find_architecture(section.architecture)[0]))
    return stride // 2 if section.stem_stride == 1 else stride


def _require_side_of_encoder(recipe: Recipe, encoder: Encoder, seen: tuple[int, int]) -> None:
    given = recipe.model.encoder_options.get("img_size")
    only = (encoder.only_px,) * 2 if given is None else given if isinstance(given, tuple) else (given, given)
    flexible = {"dynamic_img_size", "strict_img_size"} & set(recipe.model.encoder_options)
    what = f"model.encoder = '{encoder.name}'"
    if encoder.fixed and only != (None, None) and not flexible and seen != only:
        raise RecipeError(
            f"{what}: expected images of {only[0]} x {only[1]} pixels, found {seen[0]} x {seen[1]}; "
            + ("leave model.encoder_options.img_size out" if given is not None else f"set data.size = {only[0]}")
            + ", or choose another encoder"
        )
    if min(seen) < encoder.smallest_px:
        raise RecipeError(
            f"{what}: expected images of at least {encoder.smallest_px} pixels per side, found {seen[0]} x {seen[1]}; "
            f"set data.size = {encoder.smallest_px}, or choose another encoder"
        )


def _require_side_of_decoder(section: ModelSection, seen: tuple[int, int]) -> None:
    name, entry = find_architecture(section.architecture)
    smallest = entry["coarsest_px"] * _coarsest_stride(section)
    if min(seen) < smallest:
        raise RecipeError(
            f"model.architecture = '{name}' with model.encoder = '{section.encoder}': expected images of at least "
            f"{smallest} pixels per side, found {seen[0]} x {seen[1]}; set data.size = {smallest}, or choose another "
            "architecture"
        )
