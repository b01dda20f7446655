"""The base class of every table of a TOML file."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

_LARGEST = 2**53
"""Largest number up to which every integer is exact in TOML, JSON and float64."""

WORD_FOR_NOTHING = "word_for_nothing"
"""Type of the error about a word such as "none" for an empty key; its context has `name`, `value` and `means`."""

_WORDS_FOR_NOTHING = {"", "false", "no", "none", "null", "off", "random"}

ASKED = {"asked": True}
"""The validation context of values from a user; values that a run has frozen are validated without it."""


def is_asked(info: ValidationInfo) -> bool:
    """Return whether the values come from a user; frozen values are exempt from checks added since older versions."""
    context: dict[str, Any] | None = info.context
    return context == ASKED


class Section(BaseModel):
    """A table of a TOML file; unknown keys are refused, and values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_left_out(cls, values: Any, info: ValidationInfo) -> Any:
        """Refuse words such as "none" for keys that can be empty: they would be taken for names or files."""
        for name, value in values.items() if is_asked(info) and isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            is_word = value is False or (isinstance(value, str) and value.strip().lower() in _WORDS_FOR_NOTHING)
            if is_word and field is not None and field.default is None:
                _, said, meaning = (field.description or "").rpartition("empty: ")
                means = f", which means {meaning}" if said else ""
                raise PydanticCustomError(
                    WORD_FOR_NOTHING, "expected an empty key", {"name": name, "value": value, "means": means}
                )
        return values

    @model_validator(mode="after")
    def _numbers_are_sane(self) -> Self:
        for name, value in self:
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int) and abs(number) > _LARGEST:
                    raise ValueError(
                        f"{name}: expected a number of at most {_LARGEST}, found one of {len(str(number))} digits"
                    )
        return self
