"""What every table of a TOML file has in common."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

_LARGEST = 2**53
"""Up to here a whole number is itself in TOML, JSON and arithmetic alike."""

WORD_FOR_NOTHING = "word_for_nothing"
"""Type of the error about such a word; it has the name and the value of the key, and what empty means."""

_WORDS_FOR_NOTHING = {"", "false", "no", "none", "null", "off", "random"}

ASKED = {"asked": True}
"""Context of a validation: somebody asks for these values now. What was frozen earlier is read as it was."""


def is_asked(info: ValidationInfo) -> bool:
    """Return whether rules that came later than the first runs hold for the values that are validated."""
    context: dict[str, Any] | None = info.context
    return context == ASKED


class Section(BaseModel):
    """A table of a TOML file: unknown keys are refused, values cannot change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_left_out(cls, values: Any, info: ValidationInfo) -> Any:
        """Refuse words for nothing, which would be looked for as names or files."""
        for name, value in values.items() if is_asked(info) and isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            is_word = value is False or (isinstance(value, str) and value.strip().lower() in _WORDS_FOR_NOTHING)
            if is_word and field is not None and field.default is None:
                _, said, meaning = (field.description or "").rpartition("empty: ")
                means = f", which means {meaning}" if said else ""
                raise PydanticCustomError(
                    WORD_FOR_NOTHING, "there is no word for nothing", {"name": name, "value": value, "means": means}
                )
        return values

    @model_validator(mode="after")
    def _numbers_are_sane(self) -> Self:
        for name, value in self:
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int) and abs(number) > _LARGEST:
                    raise ValueError(f"{name} has a number of {len(str(number))} digits, expected at most {_LARGEST}")
        return self
