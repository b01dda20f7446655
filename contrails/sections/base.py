"""What every table of a TOML file has in common."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A table of a TOML file: unknown keys are refused, values cannot change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
