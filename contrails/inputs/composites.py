"""Input channels as named functions of the bands.

A channel is a weighted sum of bands (in their unit, such as kelvin) plus a constant, optionally clipped, or the ratio
of two such sums, such as vegetation and snow indices. It is computed from the packed integers directly, with their
scale and offset merged into the weights and the constant. Fitted normalisation is an affine map too and is merged into
the same numbers. Weights files hold them, so that a prediction needs nothing else. Composites of recipes are checked
without torch, so that a login node can refuse them.
"""

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

from contrails.errors import RecipeError, choices, names_in
from contrails.recipe.data import DataSection

if TYPE_CHECKING:
    import torch

# Ash false colour as published with OpenContrails (Ng et al. 2023, after EUMETSAT's ash product).
_ASH = ("(b15 - b14 + 4) / 6", "(b14 - b11 + 4) / 9", "(b14 - 243) / 60")
COMPOSITES: dict[str, tuple[str, ...]] = {
    "ash": _ASH,
    "ash_unclipped": _ASH,
    # only the split-window difference, in which thin ice clouds are most visible
    "split_window": ("(b14 - b15 + 2) / 6",),
}
"""Composites by name. In addition, `bands` means every band of the dataset, with 200 K to 320 K mapped to 0 to 1; bands
of images are used as they are, from 0 to 1."""

_CLIPPED = {"ash", "split_window"}
_IMAGENET = ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225))
"""Mean and standard deviation of each colour over the ImageNet training images, as in torchvision and timm."""

_ABI_BANDS = tuple(f"b{number:02d}" for number in range(1, 17))

_BAND = re.compile("b[0-9][0-9]")
_MAX_LENGTH = 500
_LARGEST = 1e30
"""Largest number allowed in a channel, so that products with scales and normalisation stay finite in float32."""


@dataclass(frozen=True)
class Channel:
    """A channel: sum of weight * band, plus `constant`, with bands in their unit, clipped to `clip` unless None.

    With `divisor` (weights and a constant) the sum is divided by a second sum; where that is 0, the result is 0.
    """

    weights: Mapping[str, float]
    constant: float = 0.0
    clip: tuple[float, float] | None = None
    divisor: tuple[Mapping[str, float], float] | None = None

    @property
    def bands(self) -> set[str]:
        """Names of the bands used by the channel."""
        return {*self.weights, *(self.divisor[0] if self.divisor else ())}

    def mapped(self, factor: float, shift: float) -> Self:
        """Return the channel `factor * self + shift`; the factor is positive."""
        # a ratio n / d becomes (factor * n + shift * d) / d
        below, of_one = self.divisor or ({}, 1.0)
        bands = dict.fromkeys([*self.weights, *below])
        return replace(
            self,
            weights={band: factor * self.weights.get(band, 0.0) + shift * below.get(band, 0.0) for band in bands},
            constant=factor * self.constant + shift * of_one,
            clip=None if self.clip is None else (factor * self.clip[0] + shift, factor * self.clip[1] + shift),
        )


@dataclass(frozen=True)
class Composite:
    """The input channels of a frame; `per_image` normalises each channel of each record to mean 0 and deviation 1."""

    channels: tuple[Channel, ...]
    per_image: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return the composite from the result of `to_dict`."""
        channels = (
            Channel(
                c["weights"], c["constant"], c["clip"] and tuple(c["clip"]),
                c.get("divisor") and (c["divisor"][0], c["divisor"][1]),
            )
            for c in values["channels"]
        )  # fmt: skip
        return cls(tuple(channels), values["per_image"])


def channels_of(section: DataSection, band_names: Sequence[str], units: str = "K") -> tuple[Channel, ...]:
    """Return the channels of a recipe for bands in `units`, before fitted normalisation.

    Raises:
        RecipeError: an expression is invalid, the dataset lacks a band, or the normalisation does not fit.
    """
    channels = channels_named(section.composite, band_names, units)
    if section.normalise != "imagenet":
        return channels
    if len(channels) != len(_IMAGENET):
        raise RecipeError(
            f"data.normalise = 'imagenet': expected {len(_IMAGENET)} channels from 0 to 1, such as ash, found "
            f"{len(channels)} of data.composite = {section.composite!r}; choose another normalisation or composite"
        )
    return tuple(c.mapped(1 / std, -mean / std) for c, (mean, std) in zip(channels, _IMAGENET, strict=True))


def channels_named(asked: str | tuple[str, ...], band_names: Sequence[str], units: str = "K") -> tuple[Channel, ...]:
    """Return the channels of a named composite, of an expression, or of a list of these.

    Raises:
        RecipeError: an expression is invalid, or the dataset lacks a band.
    """
    if not isinstance(asked, str):
        return tuple(chain.from_iterable(channels_named(one, band_names, units) for one in asked))
    if asked == "bands":
        whole = tuple(Channel({band: 1}) for band in band_names)
        return tuple(channel.mapped(1 / 120, -200 / 120) for channel in whole) if units == "K" else whole
    channels = tuple(_channel(expression, band_names, asked) for expression in COMPOSITES.get(asked, (asked,)))
    if asked in _CLIPPED:
        return tuple(replace(channel, clip=(0.0, 1.0)) for channel in channels)
    return channels


def check_composite(section: DataSection) -> None:
    """Check a composite without a dataset: its expressions, and that bands named like those of GOES exist.

    Raises:
        RecipeError: as `channels_of`.
    """
    if "bands" in section.composite:  # its number of channels depends on the dataset, so imagenet cannot be checked
        section = section.model_copy(update={"normalise": "none"})
    asked = (section.composite,) if isinstance(section.composite, str) else section.composite
    names = set(chain.from_iterable(re.findall(r"[a-z_]\w*", one, re.IGNORECASE) for one in asked))
    known = [*COMPOSITES, "bands"]
    others = (name for name in names if not _BAND.fullmatch(name) and not get_close_matches(name, known, n=1))
    channels_of(section, (*_ABI_BANDS, *sorted(others)))


def parse_expression(text: str) -> Channel:
    """Return the channel of an expression such as `(b14 - b15 + 2) / 6` or `(nir - red) / (nir + red)`.

    Allowed are numbers, names, `+ - * /` and parentheses; the text is parsed, never executed. The result must be linear
    in the names, or a ratio of two linear expressions, multiplied by and added to numbers.

    Raises:
        ValueError: anything else; the message is the reason.
    """
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"it has {len(text)} characters, expected at most {_MAX_LENGTH}")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        ratio = _ratio(tree.body)
    except (SyntaxError, RecursionError, ZeroDivisionError, OverflowError, MemoryError) as error:
        raise ValueError(f"it is not an expression ({error.args[0] if error.args else error})") from error
    parts = (ratio.above,) if ratio.below is None else (ratio.above, ratio.below)
    for part in parts:
        if not all(abs(weight) <= _LARGEST for weight in part.values()):  # written so that NaN is refused too
            raise ValueError(f"its numbers are not finite, or larger than {_LARGEST:g}")
    split = [(_without_zeros(part), part.get("", 0.0)) for part in parts]
    return Channel(*split[0], divisor=split[1] if ratio.below is not None else None)


def _without_zeros(part: "_Linear") -> "_Linear":
    """Return the weights of the bands of a linear expression, sorted by name, without its constant and zeros."""
    return {band: part[band] for band in sorted(part) if band and part[band]}


def compose(
    packed: "torch.Tensor",
    composite: Composite,
    band_names: Sequence[str],
    scale: float,
    offset: float,
    factors: "torch.Tensor | None" = None,
) -> "torch.Tensor":
    """Return the channels of packed bands, frame by frame.

    Args:
        packed: bands as the file holds them: int16, uint8 or uint16.
        composite: the channels to compute.
        band_names: name of each band along axis C.
        scale: difference in value of two consecutive integers, in the unit of the bands.
        offset: value of the integer 0.
        factors: factors of the bands (noise), applied first; None for none.

    Shape:
        packed (B, T, C, H, W), factors float32 (B, T, H, W), to float32 (B, T, len(channels), H, W).
    """
    import torch

    # Each band is converted once for all channels, and all operations are in place: memory traffic is the bottleneck.
    used = set[str]().union(*(channel.bands for channel in composite.channels))
    counts = {band: packed[:, :, band_names.index(band)].float() for band in used}
    if factors is not None:
        for count in counts.values():  # (scale * count + offset) * factor, expressed as a count again
            count.mul_(factors).add_(factors - 1, alpha=offset / scale)
    batch, frames, _, height, width = packed.shape
    out = torch.empty((batch, frames, len(composite.channels), height, width), device=packed.device)
    for index, channel in enumerate(composite.channels):
        target = out[:, :, index]
        _sum_into(target, channel.weights, channel.constant, counts, scale, offset)
        if channel.divisor is not None:
            below = torch.empty_like(target)
            _sum_into(below, *channel.divisor, counts, scale, offset)
            target.div_(below).masked_fill_(below == 0, 0.0)
        if channel.clip is not None:
            target.clamp_(*channel.clip)
    if composite.per_image:
        deviation, mean = torch.std_mean(out, dim=(-2, -1), correction=0, keepdim=True)
        out.sub_(mean).div_(deviation.clamp(min=1e-6))  # an image with a single value becomes 0, not NaN
    return out


def _sum_into(
    target: "torch.Tensor",
    weights: Mapping[str, float],
    constant: float,
    counts: "Mapping[str, torch.Tensor]",
    scale: float,
    offset: float,
) -> None:
    import torch

    sum_so_far = torch.tensor(sum(weights.values()) * offset + constant, dtype=torch.float32)
    for band, weight in weights.items():
        sum_so_far = torch.add(sum_so_far, counts[band], alpha=weight * scale, out=target)
    if not weights:
        target.fill_(constant)


def _channel(expression: str, band_names: Sequence[str], asked: str) -> Channel:
    try:
        channel = parse_expression(expression)
    except ValueError as error:
        shown = expression if len(expression) <= _MAX_LENGTH else f"{expression[:40]}..."
        raise RecipeError(
            f"data.composite: '{shown}': {error}; expected an expression over {names_in(band_names)}, "
            f"such as '(b14 - b15 + 2) / 6', or a name; {choices(shown, [*COMPOSITES, 'bands'])}"
        ) from error
    unknown = sorted(channel.bands - set(band_names))
    if unknown and expression == asked and expression.isidentifier() and not _BAND.fullmatch(expression):
        raise RecipeError(
            f"data.composite = '{asked}': expected a composite or an expression over {names_in(band_names)}; "
            f"{choices(expression, [*COMPOSITES, 'bands'])}"
        )
    if unknown:
        raise RecipeError(
            f"data.composite = {asked!r}: expected bands of {names_in(band_names)}, found {', '.join(unknown)}; choose "
            "another composite, or prepare the dataset again with --bands"
        )
    if not channel.bands:
        raise RecipeError(
            f"data.composite: '{expression}': expected a band of {names_in(band_names)}, found none; add one"
        )
    return channel


_Linear = dict[str, float]
"""Weights by band name; the constant has the empty name."""


@dataclass(frozen=True)
class _Ratio:
    """A linear expression `above`, divided by a second one `below` unless that is None."""

    above: _Linear
    below: _Linear | None = None

    @property
    def is_number(self) -> bool:
        return self.below is None and set(self.above) == {""}


def _ratio(node: ast.expr) -> _Ratio:
    match node:
        case ast.Constant(value=float() | int() as value) if not isinstance(value, bool):
            return _Ratio({"": float(value)})
        case ast.Name(id=name):
            return _Ratio({name: 1.0})
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            return _scaled(_ratio(operand), -1.0 if isinstance(sign, ast.USub) else 1.0)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _OPERATORS:
            return _OPERATORS[type(operator)](_ratio(left), _ratio(right))
    raise ValueError(f"'{ast.unparse(node)}' is not allowed")


def _times(terms: _Linear, factor: float) -> _Linear:
    return {name: factor * weight for name, weight in terms.items()}


def _scaled(ratio: _Ratio, factor: float) -> _Ratio:
    return _Ratio(_times(ratio.above, factor), ratio.below)


def _plus(left: _Linear, right: _Linear) -> _Linear:
    return {name: left.get(name, 0.0) + right.get(name, 0.0) for name in dict.fromkeys([*left, *right])}


def _add(left: _Ratio, right: _Ratio) -> _Ratio:
    if left.below == right.below:
        return _Ratio(_plus(left.above, right.above), left.below)
    ratio, other = (right, left) if right.below is not None else (left, right)
    if ratio.below is None or not other.is_number:
        raise ValueError("a sum of a ratio and bands is neither linear nor a ratio")
    return _Ratio(_plus(ratio.above, _times(ratio.below, other.above[""])), ratio.below)


def _multiply(left: _Ratio, right: _Ratio) -> _Ratio:
    if left.is_number:
        left, right = right, left
    if not right.is_number:
        raise ValueError("a product of bands is not linear")
    return _scaled(left, right.above[""])


def _divide(left: _Ratio, right: _Ratio) -> _Ratio:
    if right.is_number:
        return _scaled(left, 1 / right.above[""])
    if left.below is not None or right.below is not None:
        raise ValueError("a ratio of ratios is neither linear nor a ratio")
    return _Ratio(left.above, right.above)


_OPERATORS: dict[type[ast.operator], Callable[[_Ratio, _Ratio], _Ratio]] = {
    ast.Add: _add,
    ast.Sub: lambda left, right: _add(left, _scaled(right, -1.0)),
    ast.Mult: _multiply,
    ast.Div: _divide,
}
