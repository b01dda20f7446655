"""Which sizes of records a recipe's network takes, by the tables of `contrails.models.names`; torch is not needed."""

import math
from collections.abc import Iterator

from contrails.errors import RecipeError
from contrails.models.names import Encoder, find_architecture, find_encoder, output_stride
from contrails.recipe.model import ModelSection
from contrails.recipe.recipe import Recipe


def require_size(recipe: Recipe, height: int, width: int) -> None:
    """Check that a model takes records of a size, their windows, and pieces of so few of them.

    Raises:
        RecipeError: it does not; the message says which size it takes.
    """
    section, encoder = recipe.model, find_encoder(recipe.model.encoder)
    for seen in {_seen(recipe, height, width), _seen_in_training(recipe, height, width)}:
        _require_side_of_encoder(recipe, encoder, seen)
        if section.task == "segment":
            _require_side_of_decoder(section, seen)
    require_piece(recipe, height, width)


def require_piece(recipe: Recipe, height: int, width: int, num_ranks: int = 1, step: int | None = None) -> None:
    """Check that batch norm sees more than one value a channel in the smallest piece of a step.

    Args:
        recipe: of the model.
        height: of the records, in pixels.
        width: of the records, in pixels.
        num_ranks: that share a step.
        step: records of the smallest step, where that is not `train.batch_size`.

    Raises:
        RecipeError: it sees a single one; the message says what helps.
    """
    train = recipe.train
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
            f"{what} has batch norm on one value a record{of_size}, and needs 2 records in a piece, found {found}; "
            f"change one of these, or set {key} = 'group'"
        )


def _batch_norms(recipe: Recipe) -> Iterator[tuple[str, int | None, str]]:
    """Yield the parts of a network with batch norm, and what each asks for.

    That is the smallest side of the coarsest feature with which one record trains (None: no side is enough), and the
    key that replaces the norms.
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
    """Return the side in pixels that a network sees of a record or an enlarged one: the next multiple of its stride."""
    of_dpt = 32 if section.architecture.lower() == "dpt" else 1
    multiple = math.lcm(2**section.encoder_depth, find_encoder(section.encoder).patch_px or of_dpt)
    return -(-side // multiple) * multiple


def panel_grid(num_frames: int) -> tuple[int, int]:
    """Return the rows and columns that frames are laid out in, as nearly square as their number can be divided."""
    rows = max(rows for rows in range(1, math.isqrt(num_frames) + 1) if num_frames % rows == 0)
    return rows, num_frames // rows


def _seen(recipe: Recipe, height: int, width: int) -> tuple[int, int]:
    """Return the size of the picture that an encoder sees of a record or a window of it."""
    section = recipe.model
    height, width = (height, width) if recipe.data.size is None else (recipe.data.size,) * 2
    rows, columns = panel_grid(len(recipe.data.frames)) if section.temporal.merge == "panels" else (1, 1)
    return rows * padded(section, height), columns * padded(section, width)


def _seen_in_training(recipe: Recipe, height: int, width: int) -> tuple[int, int]:
    return _seen(recipe, *((height, width) if recipe.data.crop is None else (recipe.data.crop,) * 2))


def _coarsest_stride(section: ModelSection) -> int:
    """Return the stride of the coarsest feature that a network works with."""
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
            f"{what} takes pictures of {only[0]} x {only[1]} pixels alone, and would see {seen[0]} x {seen[1]}; "
            + ("leave model.encoder_options.img_size out" if given is not None else f"set data.size = {only[0]}")
            + ", or choose another encoder"
        )
    if min(seen) < encoder.smallest_px:
        raise RecipeError(
            f"{what} takes pictures of at least {encoder.smallest_px} pixels a side, and would see {seen[0]} x "
            f"{seen[1]}; set data.size = {encoder.smallest_px}, or choose another encoder"
        )


def _require_side_of_decoder(section: ModelSection, seen: tuple[int, int]) -> None:
    name, entry = find_architecture(section.architecture)
    smallest = entry["coarsest_px"] * _coarsest_stride(section)
    if min(seen) < smallest:
        raise RecipeError(
            f"model.architecture = '{name}' takes pictures of at least {smallest} pixels a side with "
            f"model.encoder = '{section.encoder}', and would see {seen[0]} x {seen[1]}; set data.size = {smallest}, or "
            "choose another architecture"
        )
