"""The known models and their valid combinations. They are checked without torch, so also on a login node.

`known.json` holds the names and keywords of the tested versions of smp and timm. `scripts/model_names.py` writes it
after building and running every encoder.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from contrails.errors import RecipeError, choices, nearest
from contrails.recipe.model import ModelSection, Options
from contrails.recipe.recipe import Recipe

KNOWN = Path(__file__).with_name("known.json")

_KIN = {"coat": ["mit_b2", "tu-pvt_v2_b2"], "xcit": ["tu-davit_tiny"], "volo": ["tu-davit_tiny"]}
"""Encoders to suggest instead of those of a family that offers no features, where similar names would not help."""

_PARTS = ("encoder", "merge", "decoder", "segmentation_head", "more_heads", "aux_heads", "classifier", "share")
"""Top-level modules of a network; see `contrails.models.network`."""

_SIZED = ("img_size", "dynamic_img_size", "strict_img_size")


@dataclass(frozen=True)
class Encoder:
    """The measured properties of an encoder.

    Attributes:
        name: its name in a recipe.
        options: allowed keyword arguments, with their types or choices.
        pretrained: names of its weights, the default first.
        dilates: whether its output stride can be lowered.
        stride: stride of its finest feature; None if all features have one size (plain vision transformers, for DPT).
        fixed: whether it is built for a single image size.
        smallest_px: smallest side of the input of an encoder that is not fixed, in pixels.
        only_px: side of the input of a fixed encoder without an option for it, in pixels.
        patch_px: side of the patches of a vision transformer, in pixels.
        alone_px: smallest side of its last feature, in pixels, for training with one record per batch; None: never.
        stem: whether the stride of its first convolution can be removed.
        relu: "last" if each feature ends with a ReLU, "pooled" if some are pooled after it, else None.
        not_with: architectures that cannot use its features.
    """

    name: str
    options: dict[str, Any]
    pretrained: tuple[str, ...]
    dilates: bool
    stride: int | None = 2
    fixed: bool = False
    smallest_px: int = 32
    only_px: int | None = None
    patch_px: int | None = None
    alone_px: int | None = 1
    stem: bool = False
    relu: str | None = None
    not_with: tuple[str, ...] = ()

    @property
    def is_timm(self) -> bool:
        return self.name.startswith("tu-")


@cache
def known() -> dict[str, Any]:
    """Return the tables of `known.json`."""
    tables: dict[str, Any] = json.loads(KNOWN.read_text(encoding="utf-8"))
    return tables


def require_known(recipe: Recipe) -> None:
    """Check the names, options and combinations of a recipe's model.

    Raises:
        RecipeError: an unknown name or an invalid combination; near names are listed.
    """
    section = recipe.model
    encoder = find_encoder(section.encoder)
    _require_options("model.encoder_options", section.encoder_options, encoder.options, section.encoder)
    _require_pretrained(recipe, encoder)
    if section.task == "segment":
        name, entry = find_architecture(section.architecture)
        _require_options("model.decoder_options", section.decoder_options, entry["options"], name)
        decoder_channels(section)
        _require_pair(section, name, encoder)
        _require_decoder(section, name)
    elif encoder.stride is None:
        raise RecipeError(f"model.encoder = '{section.encoder}' works only with DPT; choose another for a classifier")
    _require_stem(section, encoder)
    _require_size(recipe, encoder)
    for part in recipe.train.freeze:
        if part.partition(".")[0] not in _PARTS:
            raise RecipeError(f"train.freeze.{part}: {choices(part, _PARTS)}, or a module inside one of them")


def require_useful(recipe: Recipe) -> None:
    """Check that the model's keys have an effect.

    Raises:
        RecipeError: a key has none, so that training would not do what was meant.
    """
    section = recipe.model
    asked, has = section.relu_features, find_encoder(section.encoder).relu
    if asked == "add" and has is not None:
        raise RecipeError(
            f"model.relu_features = 'add': expected features without a ReLU, {section.encoder} has one; leave "
            "the key out"
        )
    if asked == "remove" and has != "last":
        raise RecipeError(
            f"model.relu_features = 'remove': expected features that end with a ReLU, those of {section.encoder} do "
            "not; leave the key out, or choose an encoder such as resnet34"
        )
    if recipe.train.sync_batch_norm and section.norm == "group" and section.encoder_norm != "own":
        raise RecipeError(
            "train.sync_batch_norm = true: expected a model with batch norm, found model.norm = 'group' and "
            f"model.encoder_norm = '{section.encoder_norm}'; leave one of the three keys out"
        )


def find_architecture(name: str) -> tuple[str, dict[str, Any]]:
    """Return the name of an architecture in smp's spelling, and its entry in `known.json`.

    Raises:
        RecipeError: there is no such architecture.
    """
    table = known()["architectures"]
    for known_name, entry in table.items():
        if known_name.lower() == name.lower():
            return known_name, entry
    raise RecipeError(f"model.architecture = '{name}': {choices(name, table)}")


@cache
def find_encoder(name: str) -> Encoder:
    """Return the properties of an encoder; the name of a timm encoder can have the tag of its weights.

    Raises:
        RecipeError: there is no such encoder, or it offers no features.
    """
    tables = known()
    if name == "cnn3d":
        return Encoder(name, {}, (), dilates=False, relu="pooled")
    if name in tables["encoders"]:
        entry = tables["encoders"][name]
        stride = 4 if name.startswith("mit_") else 2
        return Encoder(name, {}, tuple(entry["pretrained"]), entry["dilates"], stride, **_measured(entry))
    base, _, tag = name.removeprefix("tu-").partition(".")
    if name.startswith("tu-") and base in tables["timm"]:
        entry = tables["timm"][base]
        if tag and tag not in entry["pretrained"]:
            raise RecipeError(
                f"model.encoder = '{name}': {base} has no weights '{tag}'; {choices(tag, entry['pretrained'])}"
            )
        weights = (tag,) if tag else tuple(entry["pretrained"])
        options = tables["classes"][entry["class"]]
        return Encoder(name, options, weights, entry["dilates"], entry["stride"], entry["fixed"], **_measured(entry))
    timm = [f"tu-{other}" for other in tables["timm"]]
    if base in tables["without_features"]:
        kin = next((others for family, others in _KIN.items() if base.startswith(family)), [])
        instead = f"similar encoders: {', '.join(kin)}" if kin else nearest(f"tu-{base}", timm)
        raise RecipeError(f"model.encoder = '{name}' offers no features that a decoder could use; {instead}")
    raise RecipeError(
        f"model.encoder = '{name}': {nearest(name, [*tables['encoders'], *timm])} (an encoder of "
        "segmentation-models-pytorch, or tu-NAME for a timm model)"
    )


def _measured(entry: dict[str, Any]) -> dict[str, Any]:
    keys = ("smallest_px", "only_px", "patch_px", "alone_px", "stem", "relu")
    return {key: entry[key] for key in keys if key in entry} | {"not_with": tuple(entry["not_with"])}


def decoder_channels(section: ModelSection) -> tuple[int, ...] | int | None:
    """Return `decoder_channels` in the form of the architecture, or None for the default of smp.

    Raises:
        RecipeError: the architecture has no such key, or takes another number of them.
    """
    name, entry = find_architecture(section.architecture)
    given, depth = section.decoder_channels, section.encoder_depth
    expected = {"stages": f"one per stage (encoder_depth = {depth})", "one": "a single one"}
    if entry["channels"] is None:
        own = [key for key in entry["options"] if "channels" in key]
        if given:
            raise RecipeError(
                f"model.decoder_channels = {list(given)}: {name} has no such option; leave the key out"
                + (f", or set model.decoder_options.{own[0]}" if own else "")
            )
        return None
    if not given:
        return tuple(256 >> stage for stage in range(depth)) if entry["channels"] == "stages" else None
    if len(given) != (depth if entry["channels"] == "stages" else 1):
        raise RecipeError(
            f"model.decoder_channels: expected {expected[entry['channels']]} ({name}), found {len(given)} entries"
        )
    return given if entry["channels"] == "stages" else given[0]


def _require_options(key: str, given: Options, allowed: dict[str, Any], owner: str) -> None:
    for name, value in given.items():
        if name not in allowed:
            what = choices(name, allowed) if allowed else f"it has no options{_twin(owner)}"
            raise RecipeError(f"{key}.{name}: {owner} has no such option; {what}")
        expected = allowed[name]
        if isinstance(expected, list):
            if value not in expected:
                raise RecipeError(f"{key}.{name} = {value!r}: {choices(str(value), map(str, expected))}")
        elif expected is not None and not _is_a(value, expected):
            raise RecipeError(f"{key}.{name} = {value!r}: expected {_TYPES[expected][1]} ({owner})")


_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "int": ((int, tuple), "a whole number"),
    "float": ((int, float), "a number"),
    "str": ((str,), "a text"),
    "tuple": ((tuple, int), "a list of numbers"),
}


def _is_a(value: object, expected: str) -> bool:
    # in Python a bool is also an int
    return isinstance(value, _TYPES[expected][0]) and (expected == "bool" or not isinstance(value, bool))


def _twin(encoder: str) -> str:
    return f"; tu-{encoder} has" if encoder in known()["timm"] else ""


def _require_pretrained(recipe: Recipe, encoder: Encoder) -> None:
    section = recipe.model
    if section.encoder_norm == "frozen" and section.pretrained is None and recipe.init.run is None:
        raise RecipeError("model.encoder_norm = 'frozen' needs pretrained weights; set model.pretrained or init.run")
    names = ("default", *encoder.pretrained) if encoder.pretrained else ()
    if section.pretrained is not None and not is_file(section.pretrained) and section.pretrained not in names:
        what = choices(section.pretrained, names) if names else "it has none"
        raise RecipeError(
            f"model.pretrained = '{section.pretrained}': expected weights of {section.encoder}: {what}; or give the "
            "path of a file"
        )


def is_file(pretrained: str) -> bool:
    """Return whether `model.pretrained` is a path and not the name of weights."""
    return "/" in pretrained or pretrained.endswith(".safetensors")


def _require_pair(section: ModelSection, name: str, encoder: Encoder) -> None:
    """Check that the decoder of an architecture can use the features of an encoder."""
    depth, wrong = section.encoder_depth, None
    if name == "DPT":
        if not encoder.is_timm or depth != 4:
            wrong = "DPT needs a timm encoder and encoder_depth = 4"
        elif name in encoder.not_with:
            wrong = "its features have several sizes; choose one like tu-vit_base_patch16_224"
    elif encoder.stride is None:
        wrong = "its features all have one size, so it works only with DPT"
    elif name in encoder.not_with:
        wrong = "smp does not support this combination; choose Unet or FPN"
    elif name == "FPN" and encoder.stride == 4 and depth < 5:
        wrong = "an encoder whose features begin at stride 4 needs encoder_depth = 5"
    elif name == "FPN" and section.stem_stride == 1 and depth < 4:
        wrong = "stem_stride = 1 needs encoder_depth = 4 or 5"
    elif not encoder.dilates and output_stride(section, name) < 32:
        wider = "set model.decoder_options.encoder_output_stride = 32" if name == "PAN" else "choose one like resnet34"
        wrong = f"its stride cannot be lowered; {wider}"
    if wrong is not None:
        raise RecipeError(f"model.architecture = '{name}' with model.encoder = '{section.encoder}': {wrong}")


def _require_stem(section: ModelSection, encoder: Encoder) -> None:
    """Check that the stride of an encoder's first convolution can be changed."""
    if section.stem_stride is None or encoder.stem:
        return
    what = f"the features of {encoder.name} would not be twice as large without the stride of its first convolution"
    if encoder.stride != 2:
        what = f"needs an encoder whose features begin at stride 2; those of {encoder.name} begin at {encoder.stride}"
    raise RecipeError(
        f"model.stem_stride = {section.stem_stride}: {what}; leave the key out, or choose an encoder such as resnet18"
    )


def output_stride(section: ModelSection, name: str) -> int:
    """Return the stride of the coarsest feature that an architecture requests from its encoder."""
    default = {"DeepLabV3": 8, "DeepLabV3Plus": 16, "PAN": 16}.get(name, 32)
    stride = section.decoder_options.get("encoder_output_stride", default)
    assert isinstance(stride, int)
    return stride


_UNETS = {"Unet", "UnetPlusPlus", "MAnet"}
_WITHOUT_CORNERS = {"UnetPlusPlus", "MAnet", "Linknet", "DPT"}
_SMALLEST_SCSE = 16


def _require_decoder(section: ModelSection, name: str) -> None:
    """Check the keys that only some decoders support."""
    merge, channels = section.temporal.merge, decoder_channels(section)
    bilinear = section.decoder_options.get("decoder_interpolation") == "bilinear"
    no_corners = name in _WITHOUT_CORNERS or (name == "Unet" and not bilinear)
    squeezed = isinstance(channels, tuple) and min(channels) < _SMALLEST_SCSE
    of_unets = f"expected {', '.join(sorted(_UNETS))}; found model.architecture = '{name}'"
    problems = {
        f"skip_dropout: {of_unets}": section.skip_dropout > 0 and name not in _UNETS,
        f"deep_supervision: {of_unets}": section.deep_supervision > 0 and name not in _UNETS,
        "align_corners: expected a Unet with decoder_options.decoder_interpolation = 'bilinear', or an architecture "
        f"whose head upsamples, such as FPN; found {name}": section.align_corners is not None and no_corners,
        "temporal.merge: DPT needs panels or channels": name == "DPT" and merge not in ("channels", "panels"),
        f"decoder_channels: scse needs at least {_SMALLEST_SCSE} at every stage": squeezed
        and section.decoder_options.get("decoder_attention_type") == "scse",
    }
    for problem, found in problems.items():
        if found:
            raise RecipeError(f"model.{problem}")


def _require_size(recipe: Recipe, encoder: Encoder) -> None:
    """Check that the recipe sets the input size of an encoder for a single image size."""
    if encoder.fixed and recipe.data.size is None and not set(_SIZED) & set(recipe.model.encoder_options):
        raise RecipeError(
            f"model.encoder = '{encoder.name}' is built for one image size; set data.size"
            f"{'' if encoder.only_px is None else f' = {encoder.only_px}'}, to which records are resized"
        )
