"""Ensembles: a folder with `ensemble.json` and the weights of its members, which is all that prediction needs.

Reading and writing need no torch; `contrails.aggregate.apply` predicts with an ensemble.
"""

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from contrails.aggregate.decide.postprocess import Step
from contrails.aggregate.members.inputs import Inputs, require_like
from contrails.aggregate.members.scored import By
from contrails.aggregate.options import Options, made_by
from contrails.dataset.store import Dataset
from contrails.errors import DataError
from contrails.files import read_hint, read_json, sha256, to_json, write_atomic
from contrails.folds.filelists import FileList, read_filelist
from contrails.inputs.composites import Composite
from contrails.models.about import read_about
from contrails.sources.records import LABEL_FRAME

FORMAT = "contrails-ensemble"
VERSION = 2

FILELIST = "filelist.csv"
"""Copy of the file list in the ensemble's folder."""

DESCRIPTION = "ensemble.json"
GATE = "gate"
"""Folder in the ensemble's folder with a copy of its gate."""


@dataclass(frozen=True)
class Member:
    """One trained fold: a weights file in the ensemble's folder, its origin, and its weight in the merge."""

    file: str
    sha256: str
    run: str
    fold: str
    kind: str
    epochs: list[int]
    sources: list[str]
    """SHA-256 of the files that it was made from."""
    dice: float | None
    """Global Dice on the fold's own validation records at its own best threshold; None if it has none."""
    threshold: float
    weight: float


@dataclass(frozen=True)
class Ensemble:
    """The members of an ensemble, how they are merged, and the scores.

    The merged probabilities are cut at `threshold`, then `steps` change the mask. If the gate's score of a record is
    below `gate_below`, its probabilities are 0 (see `contrails.aggregate.decide.gate`). `complete` is True if every
    fold of the file list is included. `request` and `made_with` record everything that is needed to make it again.
    `inputs` is None for ensembles of the first versions.
    """

    path: Path
    members: tuple[Member, ...]
    options: Options
    threshold: float
    steps: tuple[Step, ...]
    scores: dict[str, Any]
    complete: bool
    folds: str
    request: dict[str, Any]
    made_with: dict[str, Any]
    gate_below: float | None = None
    inputs: Inputs | None = None

    def gate(self) -> "Ensemble | None":
        """Return the ensemble that decides which records are empty; None if there is none."""
        return None if self.gate_below is None else read_ensemble(self.path / GATE)

    def require_like(self, dataset: Dataset) -> None:
        """Check that a dataset has the units and values that the members and the gate were trained on.

        Raises:
            DataError: it has others.
        """
        for each in self.stages():
            require_like(each.inputs, dataset, each.bands(), each.again)

    @property
    def again(self) -> str:
        """The command that makes it again, with the default options."""
        return again(self.request, self.path)

    def needs(self, label_frame: int = LABEL_FRAME) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return the names of the bands and the numbers of the frames that the members use."""
        abouts = [about for each in self.stages() for about in each._abouts()]
        frames = {frame for about in abouts for frame in about["recipe"]["data"]["frames"] or (label_frame,)}
        bands = {band for each in self.stages() for band in each.bands()}
        return tuple(sorted(bands)), tuple(sorted(frames))

    def stages(self) -> "list[Ensemble]":
        """Return the ensemble, and its gate if there is one."""
        gate = self.gate()
        return [self] if gate is None else [self, gate]

    def bands(self) -> set[str]:
        """Return the names of the bands that its own members use."""
        channels = [channel for about in self._abouts() for channel in Composite.from_dict(about["composite"]).channels]
        return {band for channel in channels for band in channel.bands}

    def _abouts(self) -> list[dict[str, Any]]:
        return [read_about(self.path / member.file) for member in self.members]

    @property
    def scored_by(self) -> By:
        """What its scores count: pixels, or records if its members are classifiers."""
        tasks = {about["recipe"]["model"].get("task", "segment") for about in self._abouts()}
        return "record" if tasks == {"classify"} else "pixel"

    def filelist(self) -> FileList:
        """Return the file list that the members were trained with."""
        return read_filelist(self.path / FILELIST)


def read_description(path: Path) -> dict[str, Any] | None:
    """Return the content of `ensemble.json` in a folder; None if it is missing or of another version."""
    content = read_json(path / DESCRIPTION)
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        return None
    return content


def read_ensemble(path: Path) -> Ensemble:
    """Read an ensemble's folder.

    Raises:
        DataError: there is no ensemble of this version, or a member's file is missing or changed.
    """
    content = read_description(path)
    if content is None:
        other = read_hint(path / DESCRIPTION)
        found = f"version {other.get('version')}" if other else "none"
        raise DataError(
            f"expected an ensemble of version {VERSION} in {path} (ensemble.json), found {found}; "
            f"make one with {made_by(path)}"
        )
    del content["format"], content["version"]
    members = tuple(Member(**member) for member in content.pop("members"))
    for member in members:
        if not (path / member.file).is_file() or sha256(path / member.file) != member.sha256:
            raise DataError(
                f"{path / member.file} is missing or damaged; restore it, or make the ensemble again with "
                f"`{again(content['request'], path)}` and its former options"
            )
    options, steps = Options(**content.pop("options")), tuple(Step(**step) for step in content.pop("steps"))
    inputs = content.pop("inputs", None)
    known = None if inputs is None else Inputs.from_dict(inputs)
    return Ensemble(path, members, options, steps=steps, inputs=known, **content)


def again(request: Mapping[str, Any], path: Path) -> str:
    """Return the command that makes an ensemble in `path` again, with the default options."""
    runs = list(request.get("runs", {"RUN": "RUN"}).values())
    return shlex.join(["contrails", "aggregate", *runs, "-o", str(path)])


def write_ensemble(ensemble: Ensemble) -> None:
    """Write `ensemble.json`, after its members were written; remove the members of a previous ensemble."""
    content = asdict(replace(ensemble, path=Path()))
    del content["path"]
    write_atomic(ensemble.path / DESCRIPTION, to_json({"format": FORMAT, "version": VERSION} | content))
    for path in ensemble.path.glob("*.safetensors"):
        if path.name not in {member.file for member in ensemble.members}:
            path.unlink()
