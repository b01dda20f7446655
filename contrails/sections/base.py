"""What every table of a TOML file has in common."""

from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

_LARGEST = 2**53
"""Up to here a whole number is itself in TOML, JSON and arithmetic alike."""


class Section(BaseModel):
    """A table of a TOML file: unknown keys are refused, values cannot change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _numbers_are_sane(self) -> Self:
        for name, value in self:
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int) and abs(number) > _LARGEST:
                    raise ValueError(f"{name} has a number of {len(str(number))} digits, expected at most {_LARGEST}")
        return self
