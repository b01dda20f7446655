"""Write what a login node knows of smp and timm: names, options, weights.   python scripts/model_names.py (15 minutes)

Every timm encoder is built and run on torch's meta device (shapes without numbers); those that do not answer with the
features of a pyramid are listed as such. Run it again after an upgrade of either library.
"""

import inspect
import json
import warnings
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, get_args, get_origin

import torch
from rich.console import Console
from rich.progress import track

from contrails.models.library import smp, timm
from contrails.models.names import KNOWN

OURS = {"self", "activation", "aux_params", "classes", "decoder_channels", "in_channels", "upsampling"}
"""Keywords of architectures that a recipe says by keys of its own, or that have no place in it."""

ENCODERS_OURS = {"self", "in_chans", "num_classes", "global_pool", "features_only", "out_indices", "output_stride"}

CHOICES: dict[str, list[Any]] = {
    "decoder_attention_type": ["scse"],
    "decoder_interpolation": ["nearest", "bilinear", "bicubic", "area", "nearest-exact"],
    "decoder_merge_policy": ["add", "cat"],
    "decoder_use_norm": ["batchnorm", "identity", "instancenorm"],
}


def architecture(name: str) -> dict[str, Any]:
    """Return an architecture's keywords, and how its `decoder_channels` look."""
    parameters = inspect.signature(getattr(smp, name).__init__).parameters
    options = {
        key: CHOICES.get(key) or kind(parameter)
        for key, parameter in parameters.items()
        if key not in OURS and key not in ("encoder_name", "encoder_depth", "encoder_weights", "kwargs")
    }
    default = parameters["decoder_channels"].default if "decoder_channels" in parameters else None
    return {"options": options, "channels": "stages" if isinstance(default, tuple) else "one" if default else None}


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
    return {
        "pretrained": [] if twin else sorted(sets, key=lambda key: key != "imagenet"),
        "dilates": works(lambda: smp.encoders.get_encoder(name, output_stride=16)),
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
    at_256 = works(lambda: run(model, 256, stride))
    if not at_256 and not works(lambda: run(model, side, stride)):
        return None
    with torch.device("meta"):
        model_class = type(timm.create_model(name))
    dilated = {"weights": None, "output_stride": 16}
    if model_class.__name__ not in CLASSES:
        CLASSES[model_class.__name__] = options_of(model_class)
        DILATES[model_class.__name__] = works(lambda: smp.encoders.get_encoder("tu-" + name, **dilated))
    tags = timm.list_models(name + ".*", pretrained=True)
    return {
        "class": model_class.__name__,
        "stride": stride,
        "fixed": not (at_256 and works(lambda: run(model, 320, stride))),
        "dilates": DILATES[model_class.__name__],
        "pretrained": [tag.partition(".")[2] for tag in sorted(tags, key=lambda tag: tag != default_tag(name))],
    }


def built(name: str) -> tuple[Any, int | None]:
    """Return an encoder and the stride of its finest feature; None: all are alike, which DPT takes."""
    try:
        model = smp.encoders.get_encoder("tu-" + name, weights=None).eval()
    except ValueError:  # "Unsupported model downsampling pattern"
        return smp.create_model("DPT", "tu-" + name, encoder_depth=4, encoder_weights=None).encoder.eval(), None
    if model._is_transformer_style:
        return model, 4
    return model, 1 if model._is_vgg_style else 2


def run(model: Any, side: int, stride: int | None) -> None:
    features = model(torch.zeros(1, 3, side, side))
    if stride is not None:
        assert all(feature.shape[-1] == side // 2**level for level, feature in enumerate(features))


DILATES: dict[str, bool] = {}
"""Whether the stride of a class of models can be lowered."""


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
    architectures = [
        name for name, value in vars(smp).items() if isinstance(value, type) and issubclass(value, torch.nn.Module)
    ]
    found = {
        name: timm_encoder(name) for name in track(timm.list_models(), "timm encoders", console=Console(stderr=True))
    }
    tables: dict[str, Any] = {
        "versions": {name: version(name) for name in ("segmentation_models_pytorch", "timm")},
        "architectures": {name: architecture(name) for name in architectures},
        "encoders": {name: encoder(name) for name in smp.encoders.get_encoder_names()},
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
