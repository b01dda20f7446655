"""Ensembles: a folder with `ensemble.json` and its members' weights, all that prediction needs."""

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contrails.aggregate.decide.postprocess import Step, apply
from contrails.aggregate.decide.two_stages import behind_gate
from contrails.aggregate.members.inputs import Inputs, require_like
from contrails.aggregate.members.predict import load_predictor
from contrails.aggregate.members.prediction_files import Predict, Wanted, complete, is_of
from contrails.aggregate.members.scored import By
from contrails.aggregate.members.untile import Batches, Whole, untile
from contrails.aggregate.members.views import parse_views
from contrails.aggregate.options import Options, made_by
from contrails.aggregate.stored import FORMAT, VERSION
from contrails.dataset.store import Dataset
from contrails.errors import DataError
from contrails.files import read_json, sha256, to_json, write_atomic
from contrails.folds.filelists import FileList, read_filelist
from contrails.inputs.composites import Composite
from contrails.models.weights import read_about
from contrails.sources.records import LABEL_FRAME
from contrails.sources.tiles import Blend

LARGEST_WITH_STEPS = 64_000_000
"""Pixels of a scene up to which post-processing, which needs all of it, fits into a modest memory."""

FILELIST = "filelist.csv"
"""Copy of the file list in the ensemble's folder."""

DESCRIPTION = "ensemble.json"
GATE = "gate"
"""Folder with a copy of the gate, in the ensemble's folder."""


@dataclass(frozen=True)
class Member:
    """One trained fold: a weights file in the ensemble's folder, what it was made of, and how much it counts."""

    file: str
    sha256: str
    run: str
    fold: str
    kind: str
    epochs: list[int]
    sources: list[str]
    """SHA-256 of the files that it was made of."""
    dice: float | None
    """Global Dice on the fold's own validation records at its own best threshold; None: unscored."""
    threshold: float
    weight: float


@dataclass(frozen=True)
class Ensemble:
    """What is merged and how, and the figures.

    `threshold` cuts the merged probabilities, `steps` then change the mask; where the gate scores a record below
    `gate_below`, its probabilities are 0 (see `contrails.aggregate.decide.two_stages`); `complete` says whether every
    fold of the file list is there; `request` and `made_with` are all that is needed to make it again; `inputs` are
    unknown in those that the first builds made.
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
        """Return the ensemble that says which records hold anything, if there is one."""
        return None if self.gate_below is None else read_ensemble(self.path / GATE)

    def predictor(self, dataset: Dataset, device: torch.device) -> Predict:
        """Load the members to predict records of a dataset.

        Raises:
            DataError: units or values are not those that the members know.
        """
        self.require_like(dataset)
        return self.predictors(dataset, device)(dataset)

    def require_like(self, dataset: Dataset) -> None:
        """Check that a dataset has the units and values that the members know, and those of the gate; raises if not."""
        for each in self.stages():
            require_like(each.inputs, dataset, each.bands(), each.again)

    @property
    def again(self) -> str:
        """The command that makes it again, with the default options."""
        return again(self.request, self.path)

    def predictors(self, dataset: Dataset, device: torch.device) -> Callable[[Dataset], Predict]:
        """Load the members once, to predict this dataset and others with the same bands and frames."""
        masks = load_predictor(
            [self.path / member.file for member in self.members],
            dataset,
            device,
            rule=self.options.merge,
            weights=[member.weight for member in self.members],
            thresholds=[member.threshold for member in self.members],
            views=parse_views(self.options.tta),
            pad=self.options.pad,
        )
        gate, cut = self.gate(), self.gate_below
        if gate is None or cut is None:
            return masks.on
        gates = gate.predictors(dataset, device)
        return lambda other: behind_gate(masks.on(other), gates(other), cut)

    def needs(self, label_frame: int = LABEL_FRAME) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Return the names of the bands and the numbers of the frames that the members see."""
        abouts = [about for each in self.stages() for about in each._abouts()]
        frames = {frame for about in abouts for frame in about["recipe"]["data"]["frames"] or (label_frame,)}
        bands = {band for each in self.stages() for band in each.bands()}
        return tuple(sorted(bands)), tuple(sorted(frames))

    def stages(self) -> "list[Ensemble]":
        """Return the ensemble, and its gate if there is one."""
        gate = self.gate()
        return [self] if gate is None else [self, gate]

    def bands(self) -> set[str]:
        """Return the names of the bands that its own members see."""
        channels = [channel for about in self._abouts() for channel in Composite.from_dict(about["composite"]).channels]
        return {band for channel in channels for band in channel.bands}

    def _abouts(self) -> list[dict[str, Any]]:
        return [read_about(self.path / member.file) for member in self.members]

    @property
    def scored_by(self) -> By:
        """What its scores count: pixels, or records where its members are classifiers."""
        tasks = {about["recipe"]["model"].get("task", "segment") for about in self._abouts()}
        return "record" if tasks == {"classify"} else "pixel"

    def filelist(self) -> FileList:
        """Return the folds of the records that the members were made with."""
        return read_filelist(self.path / FILELIST)


def read_ensemble(path: Path) -> Ensemble:
    """Read an ensemble's folder.

    Raises:
        DataError: it holds no ensemble of this version, or a member's file is not the one that was merged.
    """
    content = read_json(path / DESCRIPTION)
    if content is None or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        found = f"version {content.get('version')}" if content else "none"
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
                f"`{again(content['request'], path)}` and the options that it had"
            )
    options, steps = Options(**content.pop("options")), tuple(Step(**step) for step in content.pop("steps"))
    inputs = content.pop("inputs", None)
    known = None if inputs is None else Inputs.from_dict(inputs)
    return Ensemble(path, members, options, steps=steps, inputs=known, **content)


def again(request: Mapping[str, Any], path: Path) -> str:
    """Return the command that makes an ensemble in `path` again, with the default options."""
    runs = list(request.get("runs", {"RUN": "RUN"}).values())
    return shlex.join(["contrails", "aggregate", *runs, "-o", str(path)])


def predict_into(
    ensemble: Ensemble,
    dataset: Dataset,
    rows: np.ndarray,
    file: Path,
    device: torch.device,
    *,
    replace_others: bool = True,
) -> np.ndarray:
    """Predict records into a file that resumes, and return them mapped, uint16 (N, H, W).

    Raises:
        DataError: the file holds something else, which is not to be replaced.
    """
    wanted = wanted_of(ensemble, dataset, rows, device)
    if not replace_others and file.exists() and not is_of(file, wanted):
        raise DataError(
            f"{file} exists and holds something else; give another name for what is predicted now, or --force to "
            "replace it"
        )
    return complete(file, wanted, ensemble.predictor(dataset, device), f"predictions: {file.stem}")


def wanted_of(ensemble: Ensemble, dataset: Dataset, rows: np.ndarray, device: torch.device) -> Wanted:
    """Return what a file of an ensemble's predictions holds."""
    height, width = dataset.votes.shape[1:]
    return Wanted(
        rows=rows,
        record_ids=tuple(dataset.record_ids[row] for row in rows),
        shape=(height, width),
        member="ensemble",
        about=identity_of(ensemble, device) | {"dataset": dataset.fingerprint},
    )


def identity_of(ensemble: Ensemble, device: torch.device) -> dict[str, Any]:
    """Return all that decides merged probabilities beside what they are of."""
    members = [[member.sha256, member.weight, member.threshold] for member in ensemble.members]
    made_of = {"members": members, "options": asdict(ensemble.options), "gate_below": ensemble.gate_below}
    if (gate := ensemble.gate()) is not None:
        made_of["gate"] = identity_of(gate, device)
    return made_of | {"device": device.type}


def masks_of(
    ensemble: Ensemble, dataset: Dataset, batches: Batches, blend: Blend = "hann"
) -> Iterator[tuple[Whole, np.ndarray]]:
    """Yield each whole record and its mask, bool (H, W), from merged probabilities of all records.

    A scene larger than 64 million pixels is cut at the threshold alone.
    """
    for whole in untile(dataset, batches, blend):
        steps = ensemble.steps if whole.probabilities.size <= LARGEST_WITH_STEPS else ()
        yield whole, apply(whole.probabilities, ensemble.threshold, steps) & whole.predicted


def write_ensemble(ensemble: Ensemble) -> None:
    """Write `ensemble.json`, whose members lie in the folder already; those of an ensemble that was here before go."""
    content = asdict(replace(ensemble, path=Path()))
    del content["path"]
    write_atomic(ensemble.path / DESCRIPTION, to_json({"format": FORMAT, "version": VERSION} | content))
    for path in ensemble.path.glob("*.safetensors"):
        if path.name not in {member.file for member in ensemble.members}:
            path.unlink()
