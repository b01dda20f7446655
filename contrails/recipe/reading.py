"""Validation of the tables of a TOML file as a section, and the error messages.

It imports only the base class of the sections, so that a command loads no section that it does not need.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from contrails.errors import RecipeError, choices
from contrails.recipe.base import ASKED, WORD_FOR_NOTHING, Section

_SHOWN = 120
S = TypeVar("S", bound=Section)


def parse(section: type[S], values: Mapping[str, Any], where: str, overrides: Mapping[str, str] | None = None) -> S:
    """Validate `values` as a `section`.

    Args:
        section: the class of the table.
        values: keys and values.
        where: source of the values, for errors.
        overrides: the override of each overridden key; None for frozen values, to which newer checks do not apply.

    Raises:
        RecipeError: an unknown key or an impossible value; all of them are named.
    """
    try:
        return section.model_validate(values, context=None if overrides is None else ASKED)
    except ValidationError as error:
        problems = [(_source(detail, overrides or {}) or where, _explain(section, detail)) for detail in error.errors()]
        raise RecipeError("\n".join(f"{source}: {problem}" for source, problem in problems)) from error


def keys(section: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Yield the dotted name and the field of every key, in the order of the classes.

    A key in a list of tables is called `loss.terms[bce].weight` if the tables differ by `name`, else
    `data.pseudo[].weight`.
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
    """Return the classes of tables that the list of a field can hold; empty if it is no list of tables."""
    items = get_args(field.annotation)[:1] if get_origin(field.annotation) is tuple else ()
    kinds = chain.from_iterable(map(_members_of, items))
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]


def _members_of(item: Any) -> Sequence[Any]:
    return get_args(get_args(item)[0]) if get_origin(item) is Annotated else (item,)


def _source(detail: Any, overrides: Mapping[str, str]) -> str | None:
    """Return the override that caused a problem, else None."""
    where = _key(detail)
    for key, text in overrides.items():
        # the location can be a table: an unknown one, or one with a validator, whose message then names the keys
        named = detail["ctx"]["name"] if detail["type"] == WORD_FOR_NOTHING else detail["msg"]
        of_table = detail["type"] == "extra_forbidden" or re.search(rf"\b{re.escape(key.rpartition('.')[2])}\b", named)
        if f"{where}.".startswith(f"{key}.") or ((not where or key.startswith(f"{where}.")) and of_table):
            return f"-o {_cut(text)}"
    return None


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _key(detail: Any) -> str:
    """Return the key of a problem, without the names of types that pydantic adds for a union."""
    return ".".join(str(part) for part in detail["loc"] if part not in _TYPES)


_TYPES = {"str", "float", "tuple[str, ...]", "literal['balanced']"}
"""Names that pydantic adds to the location of a value of a union type."""


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
    if detail["type"] == WORD_FOR_NOTHING:
        word = detail["ctx"]
        full = f"{key}.{word['name']}".removeprefix(".")
        return (
            f"{full} = {word['value']!r}: expected a value, or an empty key{word['means']}; to leave it empty, remove "
            f"the line from the file, or give -o {full}="
        )
    if detail["type"] == "value_error":  # raised by one of our validators, often about several keys
        return f"{key}: {detail['ctx']['error']}".removeprefix(": ")
    if detail["type"].startswith("union_tag"):  # the key `name` of a table in a list decides its kind
        name, known = detail.get("ctx", {}).get("tag"), _known_tables(section, key)
        return f"{key}: name = {name!r}; {choices(name, known)}" if name else f"{key} has no name; {choices('', known)}"
    if detail["type"] == "model_attributes_type":
        known = _known_tables(section, key)
        return f"{key} = {_cut(repr(detail['input']))}: expected a name or a table; {choices('', known)}"
    return f"{key} = {_cut(repr(detail['input']))}: {detail['msg']}"


def _meant(section: type[Section], key: str) -> str:
    """Return a hint for an unknown key: the same name in another table, a matching description, or a near name."""
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
    """Return the names of the tables allowed in the list whose item is `key`, such as `loss.terms.0`."""
    field = dict(keys(section))[key.rpartition(".")[0]]
    return [kind.model_fields["name"].default for kind in tables_of(field)]


def _meaning(field: FieldInfo) -> str:
    return field.description or ""
