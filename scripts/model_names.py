"""Write what a login node knows of smp and timm: names, options, weights, sizes.

    python scripts/model_names.py       # half an hour

Every encoder is built and run on torch's meta device (shapes without numbers); timm's that do not answer with the
features of a pyramid are listed as such. Each architecture's decoder is then run, as in training, on features like
those of each encoder. Run it again after an upgrade of either library.
"""

import inspect
import json
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, get_args, get_origin

import torch
from rich.console import Console
from rich.progress import track

from contrails.models.adjust import adjust_encoder
from contrails.models.library import smp, timm
from contrails.models.names import KNOWN
from contrails.models.relu import BeforeRelu
from contrails.recipe.model import ModelSection

Shapes = tuple[tuple[int, int], ...]
"""Channels and stride of each feature of an encoder, from fine to coarse."""

ARCHITECTURES = [
    name for name, value in vars(smp).items() if isinstance(value, type) and issubclass(value, torch.nn.Module)
]

OURS = {"self", "activation", "aux_params", "classes", "decoder_channels", "in_channels", "upsampling"}
"""Keywords of architectures that a recipe says by keys of its own, or that have no place in it."""

ENCODERS_OURS = {"self", "in_chans", "num_classes", "global_pool", "features_only", "out_indices", "output_stride"}

CHOICES: dict[str, list[Any]] = {
    "decoder_attention_type": ["scse"],
    "decoder_interpolation": ["nearest", "bilinear", "bicubic", "area", "nearest-exact"],
    "decoder_merge_policy": ["add", "cat"],
    "decoder_use_norm": ["batchnorm", "identity"],  # its instance norm has no weights, which its decoders initialise
}


def architecture(name: str) -> dict[str, Any]:
    """Return an architecture's keywords, how its `decoder_channels` look, and the least that it can train on.

    `coarsest_px` is the smallest side of the encoder's last feature, `alone_px` that with which one record trains by
    `decoder_use_norm`, None where one record never does.
    """
    parameters = inspect.signature(getattr(smp, name).__init__).parameters
    options = {
        key: CHOICES.get(key) or kind(parameter)
        for key, parameter in parameters.items()
        if key not in OURS and key not in ("encoder_name", "encoder_depth", "encoder_weights", "kwargs")
    }
    default = parameters["decoder_channels"].default if "decoder_channels" in parameters else None
    usual = ((3, 1), (64, 2), (64, 4), (128, 8), (256, 16), (512, 32))
    sides = [side for side in range(1, 17) if name == "DPT" or works(partial(train_decoder, name, usual, side))]
    alone = {
        norm: next((side for side in sides if works(partial(train_decoder, name, usual, side, 1, norm=norm))), None)
        for norm in options.get("decoder_use_norm") or ["batchnorm"]
    }
    return {
        "options": options,
        "channels": "stages" if isinstance(default, tuple) else "one" if default else None,
        "coarsest_px": min(sides),
        "alone_px": {"batchnorm": 1} if name == "DPT" else alone,
    }


class Features(torch.nn.Module):
    """An encoder without weights, which answers with features of given channels and strides."""

    def __init__(self, shapes: Shapes, depth: int, output_stride: int) -> None:
        super().__init__()
        self.shapes, self.output_stride = shapes[: depth + 1], output_stride
        self.out_channels = [channels for channels, _ in self.shapes]

    def set_in_channels(self, in_channels: int, pretrained: bool = False) -> None:
        """Take any number, as smp asks for after the construction."""

    def make_dilated(self, output_stride: int) -> None:
        """Stay as it is: the stride was given before."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        sides = [images.shape[-1] // min(stride, self.output_stride) for _, stride in self.shapes]
        shapes = zip(self.out_channels, sides, strict=True)
        return [torch.zeros(len(images), channels, side, side) for channels, side in shapes]


def train_decoder(
    name: str, shapes: Shapes, coarsest_px: int, records: int = 2, *, like: str = "", norm: str = "batchnorm"
) -> None:
    """Run an architecture in training mode on features of shapes; smp asks for the name of mit encoders alone."""
    called = "mit_b_features" if like.startswith("mit_b") else "features"
    entry = {"encoder": Features, "params": {"shapes": shapes}, "pretrained_settings": {}}
    smp.encoders.encoders[called] = entry
    try:
        options = {} if norm == "batchnorm" else {"decoder_use_norm": norm}
        model = smp.create_model(name, called, encoder_depth=5, encoder_weights=None, **options)
    finally:
        del smp.encoders.encoders[called]
    side = coarsest_px * model.encoder.output_stride
    model.train()(torch.zeros(records, 3, side, side))


TAKEN: dict[tuple[Shapes, bool], list[str]] = {}


def not_with(name: str, shapes: Shapes) -> list[str]:
    """Return the architectures but DPT whose decoder cannot take an encoder's features."""
    key = shapes, name.startswith("mit_b")
    if key not in TAKEN:
        others = [other for other in ARCHITECTURES if other != "DPT"]
        TAKEN[key] = [other for other in others if not works(partial(train_decoder, other, shapes, 8, like=name))]
    return TAKEN[key]


def kind(parameter: inspect.Parameter) -> Any:
    """Return the type of a keyword's default by name, or its choices; None: a value that a TOML file cannot hold."""
    if get_origin(parameter.annotation) is not None and all(
        isinstance(a, str | int) for a in get_args(parameter.annotation)
    ):
        return list(get_args(parameter.annotation))
    if parameter.name == "act_layer":
        return "str"
    if isinstance(parameter.default, bool | int | float | str | tuple):
        return type(parameter.default).__name__
    return None


def encoder(name: str) -> dict[str, Any]:
    """Return what is to know of an encoder of smp's own."""
    sets = smp.encoders.encoders[name]["pretrained_settings"]
    twin = name.startswith("timm-")  # an old name: smp builds many of them by timm
    model = smp.encoders.get_encoder(name, weights=None).to("meta").eval()  # mit asks its weights for numbers
    shapes, relu = probe(model, 256, None)
    smallest_px = smallest(model, None)
    return {
        "pretrained": [] if twin else sorted(sets, key=lambda key: key != "imagenet"),
        "dilates": works(lambda: smp.encoders.get_encoder(name, output_stride=16)),
        "smallest_px": smallest_px,
        "relu": relu,
        "not_with": not_with(name, shapes),
        **of_training(model, name, 256, 2, smallest_px),
    }


def timm_encoder(name: str) -> dict[str, Any] | None:
    """Return what is to know of a timm model as an encoder; None without features that smp can use."""
    config = timm.get_pretrained_cfg(name)
    side = config.input_size[-1] if config is not None else 224
    try:
        with torch.device("meta"):
            model, stride = built(name)
    except Exception:  # noqa: BLE001 - whatever one of a thousand models raises, it is no encoder
        return None
    side = 256 if works(lambda: run(model, 256, stride)) else side
    if not works(lambda: run(model, side, stride)):
        return None
    fixed = side != 256 or not works(lambda: run(model, 320, stride))
    with torch.device("meta"):
        model_class = type(timm.create_model(name))
    if model_class.__name__ not in CLASSES:
        dilated = {"weights": None, "output_stride": 16}
        CLASSES[model_class.__name__] = options_of(model_class)
        DILATES[model_class.__name__] = works(lambda: smp.encoders.get_encoder("tu-" + name, **dilated))
        DPT_TAKES[model_class.__name__] = stride is None or works(lambda: run(dpt(name), side, None))
    tags = timm.list_models(name + ".*", pretrained=True)
    return {
        "class": model_class.__name__,
        "stride": stride,
        "fixed": fixed,
        "dilates": DILATES[model_class.__name__],
        "pretrained": [tag.partition(".")[2] for tag in sorted(tags, key=lambda tag: tag != default_tag(name))],
        "patch_px": model.output_stride if stride is None else None,
        "only_px": side if fixed and "img_size" not in CLASSES[model_class.__name__] else None,
        **of_pyramid(name, model_class.__name__, model, side, stride, fixed=fixed),
    }


def of_pyramid(
    name: str, model_class: str, model: Any, side: int, stride: int | None, *, fixed: bool
) -> dict[str, Any]:
    """Return what decoders but that of DPT ask of an encoder; one whose features have one size goes with DPT alone."""
    if stride is None:
        return {"smallest_px": 32, "relu": None, "not_with": [], "alone_px": alone_px(model, None, [side])}
    shapes, relu = probe(model, side, stride)
    smallest_px = 32 if fixed else smallest(model, stride)
    return {
        "smallest_px": smallest_px,
        "relu": relu,
        "not_with": [*not_with(name, shapes), *([] if DPT_TAKES[model_class] else ["DPT"])],
        **of_training(model, "tu-" + name, side, stride, side if fixed else smallest_px),
    }


def of_training(model: Any, name: str, side: int, stride: int | None, smallest_px: int) -> dict[str, Any]:
    """Return what an encoder trains on, and whether `model.stem_stride` goes with it; its stem is changed."""
    return {
        "alone_px": alone_px(model, stride, sorted({side, *range(smallest_px, side, 32)})),
        "stem": stride == 2 and works(partial(run_without_stride, model, name, side)),
    }


def alone_px(model: Any, stride: int | None, sides: list[int]) -> int | None:
    """Return the smallest side of an encoder's last feature with which one record trains, where sides differ.

    Batch norm needs more than one value a channel; None: it has one that sees one value a record, whatever its size.
    """
    model.train()
    alone = next((side for side in sides if works(partial(run, model, side, stride))), None)
    model.eval()
    return None if alone is None else 1 if alone == sides[0] else alone // 32


def run_without_stride(model: Any, name: str, side: int) -> None:
    """Run an encoder whose first convolution has no stride, which must double all of its features."""
    adjust_encoder(model, ModelSection(encoder=name, stem_stride=1))
    features = model(torch.zeros(1, 3, side, side, device="meta"))
    assert all(feature.shape[-1] == side * 2 // 2**level for level, feature in enumerate(features) if level)


def built(name: str) -> tuple[Any, int | None]:
    """Return an encoder and the stride of its finest feature; None: all are alike, which DPT takes."""
    try:
        model = smp.encoders.get_encoder("tu-" + name, weights=None).eval()
    except ValueError:  # "Unsupported model downsampling pattern"
        return dpt(name).encoder, None
    if model._is_transformer_style:
        return model, 4
    return model, 1 if model._is_vgg_style else 2


def run(model: Any, side: int, stride: int | None) -> Any:
    features = model(torch.zeros(1, 3, side, side, device="meta"))
    if stride is not None:
        assert all(feature.shape[-1] == side // 2**level for level, feature in enumerate(features))
    return features


def smallest(model: Any, stride: int | None) -> int:
    """Return the smallest side that an encoder takes, a multiple of 32 pixels."""
    return next(side for side in range(32, 257, 32) if works(partial(run, model, side, stride)))


def probe(model: Any, side: int, stride: int | None) -> tuple[Shapes, str | None]:
    """Return the shapes of an encoder's features, and what they owe to a ReLU.

    The latter is "last" where a ReLU made each, "pooled" where some were pooled after it, None where they have signs.
    """
    before = BeforeRelu(model)
    features = run(model, side, stride)
    shapes = tuple((feature.shape[1], side // feature.shape[-1]) for feature in features)
    made = [feature for feature in features if feature.grad_fn is not None and feature.shape[1]]
    if all(one is not other for one, other in zip(made, before.features(made), strict=True)):
        return shapes, "last"
    return shapes, "pooled" if all(has_no_sign(feature.grad_fn) for feature in made) else None


def has_no_sign(made: Any) -> bool:
    """Return whether a ReLU (that of ReLU6 is called Hardtanh) made a tensor, or a pooling of what one made."""
    if made.name().startswith("MaxPool2D"):
        return has_no_sign(made.next_functions[0][0])
    return made.name() in ("ReluBackward0", "HardtanhBackward0")


def dpt(name: str) -> Any:
    return smp.create_model("DPT", "tu-" + name, encoder_depth=4, encoder_weights=None).eval()


DILATES: dict[str, bool] = {}
"""Whether the stride of a class of models can be lowered."""

DPT_TAKES: dict[str, bool] = {}
"""Whether DPT takes a class of models."""


def default_tag(name: str) -> str:
    config = timm.get_pretrained_cfg(name)
    return f"{name}.{config.tag}" if config is not None else name


CLASSES: dict[str, dict[str, Any]] = {}


def options_of(model: type) -> dict[str, Any]:
    """Return the keywords of a timm class that a recipe may give."""
    parameters = inspect.signature(model.__init__).parameters  # type: ignore[misc]
    kinds = {key: kind(parameter) for key, parameter in parameters.items() if key not in ENCODERS_OURS}
    return {key: value for key, value in kinds.items() if value is not None}


def works(build: Callable[[], object]) -> bool:
    """Return whether something can be built and run without numbers."""
    try:
        with torch.device("meta"), torch.no_grad():
            build()
    except Exception:  # noqa: BLE001 - see above
        return False
    return True


def main() -> None:
    """Write the table, one entry a line."""
    warnings.simplefilter("ignore")
    console = Console(stderr=True)
    found = {name: timm_encoder(name) for name in track(timm.list_models(), "timm encoders", console=console)}
    tables: dict[str, Any] = {
        "versions": {name: version(name) for name in ("segmentation_models_pytorch", "timm")},
        "architectures": {name: architecture(name) for name in ARCHITECTURES},
        "encoders": {
            name: encoder(name) for name in track(smp.encoders.get_encoder_names(), "smp encoders", console=console)
        },
        "classes": dict(sorted(CLASSES.items())),
        "timm": {name: entry for name, entry in found.items() if entry is not None},
        "without_features": [name for name, entry in found.items() if entry is None],
    }
    KNOWN.write_text(
        "{\n" + ",\n".join(f"{json.dumps(name)}: {lines(table)}" for name, table in tables.items()) + "\n}\n"
    )


def lines(table: Any) -> str:
    if isinstance(table, list):
        return json.dumps(table)
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in table.items()) + "\n}"


if __name__ == "__main__":
    main()
