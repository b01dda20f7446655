"""Pseudo-labels: one dataset file per fold, whose votes are the predictions of that fold's member alone.

They are made for unlabelled records, and for other frames of labelled ones. In every frame, the records that the fold
validates on, those held out from all folds, and unlabelled records of the same location and time are left out:
otherwise a member would be scored on records that are close to its training data.
"""

import hashlib
import shutil
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from contrails.aggregate.ensemble import FILELIST, Ensemble, Member
from contrails.aggregate.members.predict import load_predictor
from contrails.aggregate.members.prediction_files import Wanted, complete
from contrails.aggregate.members.views import parse_views
from contrails.aggregate.options import noted
from contrails.dataset.layout import create, header_of, opened, row_offsets, write_columns, write_row
from contrails.dataset.store import IGNORE, Dataset, open_dataset
from contrails.errors import DataError, RecipeError, RunError
from contrails.files import atomic_path, sha256, to_json
from contrails.folds.filelists import HELD_OUT, FileList, read_filelist
from contrails.folds.pseudo import ANNOTATORS, ATTRIBUTE, pseudo_path, read_origin
from contrails.metrics import NUM_BINS
from contrails.progress import bar
from contrails.runs.folder import ALL

_APART_S = 24 * 3600
"""Minimum distance in time of an unlabelled record from a scored one of the same location, as in `contrails split`."""


def write_pseudo_labels(
    ensemble: Ensemble, dataset: Dataset, folder: Path, frames: tuple[int, ...], device: torch.device
) -> Iterator[tuple[Path, int]]:
    """Write the file of each member, and yield it with its number of records; resumes after a kill.

    Args:
        ensemble: an ensemble of single folds of one run.
        dataset: the records to label.
        folder: folder for fold0.h5 and so on.
        frames: frames to label in addition to human labels; if empty, the labelled frame.
        device: device that predicts.

    Raises:
        RunError: the members are not single folds of one run, or the run's dataset has changed.
        RecipeError: the dataset lacks a frame.
        DataError: a file of the same name was made differently, no record is left, or the dataset's units or values
            differ from those of the training data.
    """
    _require_single_folds(ensemble)
    ensemble.require_like(dataset)
    wanted = frames or (dataset.label_frame,)
    seen_from = {frame: _seen_from(dataset, frame, ensemble.needs(dataset.label_frame)[1]) for frame in wanted}
    filelist, trained_on = read_filelist(ensemble.path / FILELIST), _dataset_of(ensemble)
    labelled = _labelled(trained_on) | _labelled(dataset)
    for member in ensemble.members:
        allowed = _allowed(dataset, trained_on, filelist, labelled, member.fold)
        rows = {frame: _rows(dataset, allowed, labelled, frame) for frame in wanted}
        path, parts = pseudo_path(folder, member.fold), {f: (seen_from[f], rows[f]) for f in wanted if len(rows[f])}
        _write(ensemble, member, path, parts, dataset, device)
        yield path, sum(map(len, rows.values()))


def _labelled(dataset: Dataset) -> set[str]:
    """Return the ids of the records that have a human label."""
    return {name for name, count in zip(dataset.record_ids, dataset.annotators, strict=True) if count}


def _require_single_folds(ensemble: Ensemble) -> None:
    if ensemble.scored_by == "record":
        raise RunError(
            f"{ensemble.path}: expected members that predict masks, found classifiers, which label whole records; give "
            "an ensemble of segmenters"
        )
    runs = {member.run for member in ensemble.members}
    several = [member.fold for member in ensemble.members if not (member.fold.isdecimal() or member.fold == ALL)]
    if len(runs) > 1 or several:
        found = f"runs {', '.join(sorted(runs))}" if len(runs) > 1 else f"a {several[0]}"
        raise RunError(
            f"{ensemble.path}: expected single folds of one run, found {found}: the pseudo-labels of a fold must be "
            "predicted by its member alone; aggregate one run, without --average-folds"
        )


def _dataset_of(ensemble: Ensemble) -> Dataset:
    """Return the dataset that the members were trained on, which tells which records of the file list are labelled."""
    expected = ensemble.request["dataset"]
    dataset = open_dataset(Path(expected["path"]))
    if dataset.fingerprint != expected["fingerprint"]:
        raise RunError(
            f"{dataset.path} is not the dataset of {ensemble.path} (expected {expected['fingerprint'][:16]}, found "
            f"{dataset.fingerprint[:16]}); restore the old file, which tells which records must not be pseudo-labelled"
        )
    return dataset


def _allowed(dataset: Dataset, trained_on: Dataset, filelist: FileList, labelled: set[str], fold: str) -> list[int]:
    """Return the rows that a fold may train on with pseudo-labels, in any frame."""
    fold_of = dict(zip(filelist.record_ids, filelist.folds, strict=True))
    judged_folds = {HELD_OUT} | ({int(fold)} if fold != ALL else set())
    judged = defaultdict[str, list[float]](list)
    for row, name in enumerate(trained_on.record_ids):
        if name in labelled and fold_of.get(name, HELD_OUT) in judged_folds:
            judged[trained_on.groups[row]].append(float(trained_on.timestamps[row]))
    rows = []
    for row, name in enumerate(dataset.record_ids):
        if name in labelled:  # a labelled record that is in no fold is for evaluation
            allowed = fold_of.get(name, HELD_OUT) not in judged_folds
        else:
            apart_s = np.abs(np.array(judged.get(dataset.groups[row], [])) - dataset.timestamps[row])
            allowed = bool((apart_s > _APART_S).all())  # False for NaN: an unknown time may be close
        if allowed:
            rows.append(row)
    return rows


def _rows(dataset: Dataset, allowed: list[int], labelled: set[str], frame: int) -> np.ndarray:
    """Return the rows to label in a frame, int64, without those that have a human label there."""
    known = labelled if frame == dataset.label_frame else set()
    return np.array([row for row in allowed if dataset.record_ids[row] not in known], np.int64)


def _seen_from(dataset: Dataset, frame: int, needed: tuple[int, ...]) -> Dataset:
    """Return the dataset with its frames renumbered as if `frame` were the labelled one."""
    shift = frame - dataset.label_frame
    missing = [number + shift for number in needed if number + shift not in dataset.frames]
    if missing:
        raise RecipeError(
            f"--frames {frame}: the members use the frames {list(needed)} for a label at {dataset.label_frame}, so "
            f"frames {missing} are needed too, and {dataset.path} holds {list(dataset.frames)}; choose other frames, "
            "or prepare more"
        )
    return replace(dataset, frames=tuple(number - shift for number in dataset.frames))


def _write(
    ensemble: Ensemble,
    member: Member,
    path: Path,
    parts: dict[int, tuple[Dataset, np.ndarray]],
    dataset: Dataset,
    device: torch.device,
) -> None:
    """Predict and write one member's file, unless it exists."""
    origin = {
        "run": member.run,
        "fold": member.fold,
        "weights": member.sha256,
        "filelist": sha256(ensemble.path / FILELIST),
        "source": dataset.fingerprint,
        "frames": sorted(parts),
        "tta": ensemble.options.tta,
        "pad": ensemble.options.pad,
        "device": device.type,
    } | noted(ensemble.options.precision)
    if path.exists():
        if read_origin(path) != origin:
            raise DataError(
                f"{path} exists and was made differently; runs may use it: give another folder, or remove it"
            )
        return
    if not parts:
        raise DataError(
            f"fold {member.fold}: expected records to pseudo-label in {dataset.path}, found none: all are labelled, or "
            "validated by this fold or held out; give a dataset with unlabelled records, or other --frames"
        )
    begun = path.with_name(f".{path.stem}")
    probabilities = {
        frame: _predict(ensemble, member, begun / f"frame{frame}.h5", frame, seen, rows, device)
        for frame, (seen, rows) in parts.items()
    }
    _assemble(path, dataset, parts, probabilities, ensemble.needs(dataset.label_frame)[1], origin)
    shutil.rmtree(begun)


def _predict(
    ensemble: Ensemble,
    member: Member,
    path: Path,
    frame: int,
    seen: Dataset,
    rows: np.ndarray,
    device: torch.device,
) -> np.ndarray:
    """Return a member's probabilities of a frame, uint16 (N, H, W), memory-mapped; resumes after a kill."""
    height, width = seen.votes.shape[1:]
    views, pad, precision = parse_views(ensemble.options.tta), ensemble.options.pad, ensemble.options.precision
    wanted = Wanted(
        rows=rows,
        record_ids=tuple(seen.record_ids[row] for row in rows),
        shape=(height, width),
        member=f"{member.run}-fold{member.fold}",
        about={"weights": member.sha256, "dataset": seen.fingerprint, "pad": pad, "device": device.type}
        | {"views": [vars(view) for view in views]}
        | noted(precision),
    )
    predictor = load_predictor([ensemble.path / member.file], seen, device, views=views, pad=pad, precision=precision)
    return complete(path, wanted, predictor, f"fold {member.fold}, frame {frame}")


def _assemble(
    path: Path,
    dataset: Dataset,
    parts: dict[int, tuple[Dataset, np.ndarray]],
    probabilities: dict[int, np.ndarray],
    frames: tuple[int, ...],
    origin: dict[str, Any],
) -> None:
    """Write the dataset file: the frames that a member uses, numbered as in its training data, and its votes."""
    samples = [(frame, int(row)) for frame, (_, rows) in parts.items() for row in rows]
    header = replace(
        header_of(dataset),
        split="pseudo",
        frames=frames,
        with_marks=False,
        record_ids=tuple(f"{dataset.record_ids[row]}@{frame}" for frame, row in samples),
        groups=tuple(dataset.groups[row] for _, row in samples),
        timestamps=tuple(float(dataset.timestamps[row]) for _, row in samples),
        placements=tuple(dataset.placements[row] for _, row in samples) if dataset.placements else (),
        shard=None,
    )
    images = (image for frame in parts for image in probabilities[frame])
    with atomic_path(path) as temporary, bar(path.name, len(samples)) as advance:
        create(header, temporary, {ATTRIBUTE: to_json(origin)})
        where = row_offsets(temporary)
        digests: dict[str, bytearray] = {"bands": bytearray(), "votes": bytearray()}
        with opened(temporary) as descriptor:
            for index, ((frame, row), image) in enumerate(zip(samples, images, strict=True)):
                positions = list(parts[frame][0].frame_positions(frames))
                votes = np.rint(image * (ANNOTATORS / (NUM_BINS - 1))).astype(np.uint8)
                votes[dataset.votes[row] == IGNORE] = IGNORE
                for name, array in (("bands", dataset.bands[row, positions]), ("votes", votes)):
                    payload = np.ascontiguousarray(array).tobytes()
                    write_row(descriptor, where[name], index, payload)
                    digests[name] += hashlib.sha256(payload).digest()
                advance(1)
        write_columns(temporary, bytes([ANNOTATORS]) * len(samples), {name: bytes(d) for name, d in digests.items()})
