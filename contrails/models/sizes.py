"""Which sizes of records a recipe's network takes, by the tables of `contrails.models.names`; torch is not needed."""

import math

from contrails.config import Recipe
from contrails.errors import RecipeError
from contrails.models.names import Encoder, find_architecture, find_encoder, output_stride
from contrails.sections.model import ModelSection


def require_size(recipe: Recipe, height: int, width: int) -> None:
    """Check that a model takes records of a size, their windows, and pieces of so few of them.

    Raises:
        RecipeError: it does not; the message says which size it takes.
    """
    section, encoder = recipe.model, find_encoder(recipe.model.encoder)
    piece, sides = recipe.train.batch_size // recipe.train.accumulate, {(height, width)}
    if recipe.data.crop is not None:
        sides.add((recipe.data.crop,) * 2)
    sides = sides if recipe.data.size is None else {(recipe.data.size,) * 2}
    for seen in (_seen(recipe, *side) for side in sides):
        _require_side_of_encoder(recipe, encoder, seen)
        if section.task == "segment":
            _require_side_of_decoder(section, seen)
    require_piece(recipe, piece)


def require_piece(recipe: Recipe, piece: int, step: int | None = None) -> None:
    """Check that a model trains on pieces of so few records.

    Args:
        recipe: of the model.
        piece: records of the smallest piece.
        step: records of the step that it is of, where that is not all of `train.batch_size`.

    Raises:
        RecipeError: it does not.
    """
    section = recipe.model
    if section.task != "segment" or section.norm != "batch":
        return
    name, entry = find_architecture(section.architecture)
    if piece < entry["records"]:
        found = f"train.batch_size = {recipe.train.batch_size} with train.accumulate = {recipe.train.accumulate}"
        if step is not None:
            found += f" and train.drop_last = {str(recipe.train.drop_last).lower()}, which make a step of {step}"
        raise RecipeError(
            f"model.architecture = '{name}' has batch norm on one value a record, and needs {entry['records']} "
            f"records in a piece, found {found}; change one of these, or set model.norm = 'group'"
        )


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
    """Return the size of the picture that an encoder sees."""
    section = recipe.model
    rows, columns = panel_grid(len(recipe.data.frames)) if section.temporal.merge == "panels" else (1, 1)
    return rows * padded(section, height), columns * padded(section, width)


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
    stride = min(output_stride(section, name), 2**section.encoder_depth)
    stride = stride // 2 if section.stem_stride == 1 else stride
    smallest = entry["coarsest_px"] * stride
    if min(seen) < smallest:
        raise RecipeError(
            f"model.architecture = '{name}' takes pictures of at least {smallest} pixels a side with "
            f"model.encoder = '{section.encoder}', and would see {seen[0]} x {seen[1]}; set data.size = {smallest}, or "
            "choose another architecture"
        )
