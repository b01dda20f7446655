"""A recipe: what one experiment trains on, with which model and how; read from TOML, changed by dotted overrides.

Reads recipes (`jobs/*.toml`) and the frozen copy in a run folder. Every key is a field below with its meaning;
`contrails recipe schema` prints them. Anything unknown or impossible is refused before a job is submitted.
"""

import hashlib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

import tomli_w
from pydantic import Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from contrails.errors import RecipeError, choices
from contrails.files import storage, to_json
from contrails.sections.augment import MIXING, TEMPORAL, AugmentSection
from contrails.sections.base import Section
from contrails.sections.data import DataSection
from contrails.sections.loss import LossSection
from contrails.sections.model import ModelSection
from contrails.sections.train import SnapshotSection, TrainSection

_SHOWN = 120
S = TypeVar("S", bound=Section)


class InitSection(Section):
    """The weights that training starts from: random ones, or those of the same fold of another run."""

    run: Path | None = Field(None, description="run whose fold k fold k starts from; empty: random weights")
    weights: Literal["best", "final", "swa", "ema"] = Field("best", description="which of that fold's weights")


class Recipe(Section):
    """One experiment."""

    seed: int = Field(0, ge=0, description="names every random draw of the run")
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
                f"augment.{mixing[0]} takes from another sample of the batch, and train.batch_size = "
                f"{self.train.batch_size} with train.accumulate = {pieces} has one at a time; expected at least "
                f"batch_size = {2 * pieces}"
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
        for key, asked, there, wanted in (
            ("loss.classes", loss.classes is not None, model.classifier, "model.classifier = true"),
            ("loss.share", loss.share is not None, model.share, "model.share = true"),
            ("loss.aux", loss.aux is not None, model.deep_supervision > 0, "model.deep_supervision = 1 or more"),
            ("loss.gate", loss.gate, model.classifier, "model.classifier = true"),
        ):
            if asked and not there:
                raise ValueError(f"{key} needs a head to act on; set {wanted}, or leave {key} out")
        for term in loss.terms:
            if term.name == "softmax_ce" and model.logits != 2:
                raise ValueError("loss.terms: softmax_ce needs two logits; set model.logits = 2, or choose bce")
            if term.head is not None and term.head >= (model.heads if model.heads > 1 else 0):
                raise ValueError(f"loss.terms: {term.name} has head = {term.head}, found model.heads = {model.heads}")
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


class ComputeSection(Section):
    """What decides the bits of a result besides the recipe: resolved at submission, the same for every attempt."""

    device: Literal["cpu", "cuda"] = Field(description="where the folds train")
    num_threads: int = Field(ge=1, description="CPU threads of one fold; another number gives other bits")
    num_ranks: int = Field(1, ge=1, description="processes that train one fold together, one GPU each")


class DataIdentity(Section):
    """Which data a run was made for; every attempt compares."""

    dataset: str = Field(description="fingerprint of the dataset file (see `contrails.data.store`)")
    filelist: str = Field(description="SHA-256 of the file list")
    num_folds: int = Field(ge=1, description="folds of the file list")
    exclude: str = Field("", description="SHA-256 of the exclusion list; empty without one")
    pseudo: dict[str, str] = Field({}, description="fingerprint of each file of pseudo-labels")


class WeightsFile(Section):
    """Weights of another run, as they were when this run was made."""

    path: Path = Field(description="a safetensors file")
    sha256: str = Field(description="SHA-256 of the file")


class RunConfig(Section):
    """The content of `run.toml`: recipe and data are frozen when the run is created."""

    recipe: Recipe
    compute: ComputeSection
    data: DataIdentity
    site: dict[str, Any] = Field(description="the site profile, resolved; see `contrails.cluster.sites`")
    code: str = Field(description="SHA-256 of the frozen package")
    lineage: dict[str, WeightsFile] = Field({}, description="what each fold starts from, if not from random weights")
    pretrained: WeightsFile | None = Field(None, description="what the encoder of every fold starts from")

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the result beside code and machine; keys with their default do not count."""
        decisive = {"recipe", "data", "lineage", "pretrained"}
        values = self.model_dump(mode="json", include=decisive, exclude_defaults=True)
        return hashlib.sha256(to_json(values).encode()).hexdigest()


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from TOML and apply `key=value` overrides such as `train.lr=3e-4`; `key=` goes back to the default.

    Raises:
        RecipeError: no such file, no TOML, an unknown key or an impossible value; all of them are named.
    """
    values = read_toml(path, "a recipe")
    return parse(Recipe, values, str(path), _apply_all(values, overrides))


def override(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Return a recipe with `key=value` overrides.

    Raises:
        RecipeError: as `load_recipe`.
    """
    values = recipe.model_dump(mode="json", exclude_none=True)
    return parse(Recipe, values, "the recipe", _apply_all(values, overrides))


def read_toml(path: Path, kind: str) -> dict[str, Any]:
    """Read a TOML file; `kind` says in the error what was looked for."""
    with storage(path, "read"):
        try:
            return tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (FileNotFoundError, IsADirectoryError) as error:
            raise RecipeError(f"expected {kind} at {path}, found no such file; give the path of a TOML file") from error
        except (ValueError, RecursionError) as error:
            raise RecipeError(f"{path} is not TOML: {error}") from error


def parse(section: type[S], values: Mapping[str, Any], where: str, overrides: Mapping[str, str] | None = None) -> S:
    """Validate `values` as a `section`; `where` names their source in errors, `overrides` that of single keys."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        problems = [(_source(detail, overrides or {}) or where, _explain(section, detail)) for detail in error.errors()]
        raise RecipeError("\n".join(f"{source}: {problem}" for source, problem in problems)) from error


def to_toml(section: Section, **more: Any) -> str:
    """Return a section as TOML, with further tables; unset values are left out, as TOML has no null."""
    return tomli_w.dumps(section.model_dump(mode="json", exclude_none=True) | more)


def keys(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted name and the field of every key, in the order of the classes.

    In a list of tables that differ by `name`, the keys of one of them are called such as `loss.terms[bce].weight`; in a
    list of tables that are alike, such as `data.pseudo[].weight`.
    """
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field
            for kind in tables_of(field):
                which = kind.model_fields["name"].default if "name" in kind.model_fields else ""
                yield from keys(kind, f"{prefix}{name}[{which}].")


def tables_of(field: FieldInfo) -> list[type[Section]]:
    """Return the tables that a list of tables can hold; none for any other key."""
    items = get_args(field.annotation)[:1] if get_origin(field.annotation) is tuple else ()
    kinds = [kind for item in items for kind in _members_of(item)]
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]


def _members_of(item: Any) -> Sequence[Any]:
    return get_args(get_args(item)[0]) if get_origin(item) is Annotated else (item,)


def _apply_all(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, str]:
    """Change `values` and return each override by its key."""
    return {_apply(values, override): override for override in overrides}


def _apply(values: dict[str, Any], override: str) -> str:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"override '{override}': expected key=value, such as train.lr=3e-4")
    *tables, last = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise RecipeError(f"override '{override}': {table} is a value, not a table; {choices(key, _names(Recipe))}")
    if not text.strip() and key.strip() in _names(Recipe):
        values.pop(last, None)
    else:
        values[last] = _toml_value(text.strip())
    return key.strip()


def _toml_value(text: str) -> Any:
    try:
        read = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text  # a bare word or a path, so that -o model.encoder=resnet34 needs no quotes within quotes
    return read["value"] if len(read) == 1 else text  # further lines would be further keys


def _names(section: type[Section]) -> list[str]:
    return [name for name, _ in keys(section)]


def _source(detail: Any, overrides: Mapping[str, str]) -> str | None:
    """Return the override that a problem comes from, if one does."""
    where = _key(detail)
    for key, text in overrides.items():
        # a problem of a table is an unknown table, or a validator's that names the keys it is about
        of_table = detail["type"] == "extra_forbidden" or re.search(
            rf"\b{re.escape(key.rpartition('.')[2])}\b", detail["msg"]
        )
        if f"{where}.".startswith(f"{key}.") or ((not where or key.startswith(f"{where}.")) and of_table):
            return f"-o {_cut(text)}"
    return None


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _key(detail: Any) -> str:
    """Return the key that a problem is about; pydantic adds the types that a value could have had."""
    return ".".join(str(part) for part in detail["loc"] if part not in _TYPES)


_TYPES = {"str", "float", "tuple[str, ...]", "literal['balanced']"}
"""What pydantic adds to the place of a value that can be of several types."""


def _explain(section: type[Section], detail: Any) -> str:
    key = _key(detail)
    if detail["type"] == "extra_forbidden":
        return f"unknown key {key}; {_meant(section, key)}"
    if detail["type"] == "missing":
        required = [
            known
            for known, field in keys(section)
            if field.is_required() and f"{known}.".startswith(f"{key}.") and "[" not in known
        ]
        if not required:
            return f"{key} is missing; add it to its table"
        what = f"{' and '.join(required)} {'is' if len(required) == 1 else 'are'} missing"
        return f"{what}; add to the file, or give -o {required[0]}=VALUE"
    if detail["type"] == "model_type":
        return f"{key} = {_cut(repr(detail['input']))}: expected a table, [{key}]"
    if detail["type"] == "tuple_type":
        return f"{key} = {_cut(repr(detail['input']))}: expected a list, such as [{_cut(str(detail['input']))}]"
    if detail["type"] == "value_error":  # a validator's own words, about several keys
        return f"{key}: {detail['ctx']['error']}".removeprefix(": ")
    if detail["type"].startswith("union_tag"):  # a table of a list says by its name what it is
        name, known = detail.get("ctx", {}).get("tag"), _known_tables(section, key)
        return f"{key}: name = {name!r}; {choices(name, known)}" if name else f"{key} has no name; {choices('', known)}"
    if detail["type"] == "model_attributes_type":
        known = _known_tables(section, key)
        return f"{key} = {_cut(repr(detail['input']))}: expected a name or a table; {choices('', known)}"
    return f"{key} = {_cut(repr(detail['input']))}: {detail['msg']}"


def _meant(section: type[Section], key: str) -> str:
    """Return what an unknown key may stand for: a key of another table, one described so, or a near one beside it."""
    table, _, name = key.rpartition(".")
    prefix = f"{table}." if table else ""
    fields = dict(keys(section))
    prefix = re.sub(r"\.[0-9]+\.(\w+)\.$", r"[\1].", prefix)  # loss.terms.0.bce. -> loss.terms[bce].
    prefix = re.sub(r"\.[0-9]+\.$", "[].", prefix)  # data.pseudo.0. -> data.pseudo[].
    same = [known for known in fields if known.endswith(f".{name}")]
    described = [known for known, field in fields.items() if "_" in name and name.replace("_", " ") in _meaning(field)]
    if same or described:
        return f"did you mean '{(same or described)[0]}'?"
    return choices(name, {known.removeprefix(prefix).split(".")[0] for known in fields if known.startswith(prefix)})


def _known_tables(section: type[Section], key: str) -> list[str]:
    """Return the names of the tables that the list can hold whose item `key` is, such as `loss.terms.0`."""
    field = dict(keys(section))[key.rpartition(".")[0]]
    return [kind.model_fields["name"].default for kind in tables_of(field)]


def _meaning(field: FieldInfo) -> str:
    return field.description or ""
