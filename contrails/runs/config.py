"""The frozen configuration of a run, `run.toml`: recipe, data, code, and other settings that determine the result."""

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from contrails.files import to_json
from contrails.recipe.base import Section
from contrails.recipe.recipe import Recipe


class ComputeSection(Section):
    """Settings besides the recipe that determine a result, resolved at submission and the same for all attempts."""

    device: Literal["cpu", "cuda"] = Field(description="where the folds train")
    num_threads: int = Field(
        ge=1, description="CPU threads per fold; with another number the weights are not byte-identical"
    )
    num_ranks: int = Field(1, ge=1, description="processes that train one fold together, one GPU each")


class DataIdentity(Section):
    """The data that a run was made for; every attempt checks that they are the same."""

    dataset: str = Field(description="fingerprint of the dataset file (see `contrails.dataset.store`)")
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
    site: dict[str, Any] = Field(description="the site profile, resolved; see `contrails.cluster.schedulers.sites`")
    code: str = Field(description="SHA-256 of the frozen package")
    lineage: dict[str, WeightsFile] = Field({}, description="what each fold starts from, if not from random weights")
    pretrained: WeightsFile | None = Field(None, description="what the encoder of every fold starts from")

    @property
    def digest(self) -> str:
        """SHA-256 of what determines the result besides code and machine, without keys that have their default."""
        decisive = {"recipe", "data", "lineage", "pretrained"}
        values = self.model_dump(mode="json", include=decisive, exclude_defaults=True)
        return hashlib.sha256(to_json(values).encode()).hexdigest()
