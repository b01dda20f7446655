"""The data sent to a sink for a fold and for an aggregation, read from the run folder."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contrails.errors import DataError
from contrails.files import read_hint, read_json_lines, read_toml
from contrails.progress import tell
from contrails.runs.folder import Fold, Run
from contrails.runs.metrics import fold_metrics
from contrails.tracking.sink import Experiment, Picture, References, Sink, Table

_SAMPLES = 16
"""Number of records in the table of predictions; each takes three files."""


def rows_of(fold: Fold, sent: int = 0) -> list[dict[str, Any]]:
    """Return the rows of a fold that are saved, or its first `sent` rows if these are more.

    A fold that resumes from an older snapshot has fewer saved rows for a while.
    """
    rows = fold_metrics(fold)
    if rows and _awaits_validation(fold, rows[-1]):
        rows = rows[:-1]
    return rows if len(rows) >= sent else fold_metrics(fold, newest=True)[:sent]


def _awaits_validation(fold: Fold, row: dict[str, Any]) -> bool:
    """Return whether the last row may still be merged with a validation row, if a snapshot came between the two."""
    if fold.done.exists() or not float(row.get("epoch", 0)).is_integer() or any(key.startswith("val/") for key in row):
        return False
    return bool(fold_metrics(fold, newest=True)[-1]["step"] == row["step"])


def digest_of(rows: list[dict[str, Any]]) -> str:
    """Return the SHA-256 of rows."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def notes_of(run: Run) -> str:
    """Return the notes on a run, one per line."""
    return "\n".join(str(row["text"]) for row in read_json_lines(run.notes) if row.get("text"))


def describe_fold(fold: Fold, run_id: str) -> Experiment:
    """Return the description of a fold, which precedes its rows."""
    attempts = [read_hint(attempt.job) for attempt in fold.attempts()]
    config = _config(fold.run) | {"fold": fold.key, "attempts": attempts}
    return Experiment(fold.path, run_id, fold.run.name, "train", f"fold{fold.key}", config, notes_of(fold.run))


def finish_fold(sink: Sink, fold: Fold) -> Mapping[str, float | str]:
    """Send the addresses of a finished fold's weights; return its summary."""
    done = fold.read_done()
    if done is None:
        return {}
    if files := sorted(fold.weights.glob("*.safetensors")):
        sink.media(f"{fold.run.name}-fold{fold.key}", References("weights", files))
    return {} if done["best_dice"] is None else {"best_dice": float(done["best_dice"])}


def describe_aggregation(folder: Path, run_id: str) -> Experiment:
    """Return the description of an aggregation, which precedes its tables."""
    run, figures = _run_of(folder), _figures(folder)
    config = _config(run) | {key: figures[key] for key in ("options", "request", "members", "folds", "complete")}
    return Experiment(folder, run_id, run.name, "aggregate", folder.name, config, notes_of(run))


def fill_aggregation(sink: Sink, folder: Path, skip: int) -> tuple[int, Mapping[str, float | str]]:
    """Send an aggregation without its first `skip` tables; return the number of all its tables, and its summary."""
    run, figures = _run_of(folder), _figures(folder)
    scores = figures["scores"]
    tables = {"predictions": _samples(run, folder, figures)}
    if decisions := scores.get("decisions"):
        tables["decisions"] = Table(list(decisions[0]), [list(row.values()) for row in decisions])
    found = [(name, table) for name, table in tables.items() if table is not None]
    for name, table in found[skip:]:
        sink.media(name, table)
    if files := sorted(folder.glob("*.safetensors")):
        sink.media(f"{run.name}-{folder.name}", References("ensemble", files))
    return len(found), _numbers(scores) | {"threshold": figures["threshold"]}


def _run_of(folder: Path) -> Run:
    return Run(folder.parent.parent)


def _figures(folder: Path) -> dict[str, Any]:
    # imported here, since a fold needs no torch
    from contrails.aggregate.ensemble import read_description

    figures = read_description(folder)
    if figures is None:
        again = f"run `contrails aggregate {_run_of(folder).typed}` again"
        raise DataError(f"{folder}: expected an aggregation of this version, found none; {again}")
    return figures


def _config(run: Run) -> dict[str, Any]:
    """Return the frozen recipe, data and site, and the origin of the run."""
    made = read_hint(run.provenance)
    return read_toml(run.toml, "a run") | {"provenance": {key: made[key] for key in made if key != "changes"}}


def _numbers(scores: dict[str, Any], prefix: str = "") -> dict[str, float | str]:
    """Return the scores under dotted names, without tables."""
    found: dict[str, float | str] = {}
    for key, value in scores.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float | str):
            found[f"{prefix}{key}"] = value
    return found


def _samples(of: Run, folder: Path, figures: dict[str, Any]) -> Table | None:
    """Return sample records with label and out-of-fold mask; None if the predictions are missing."""
    from contrails.aggregate.decide.judged import choose, judge
    from contrails.aggregate.decide.postprocess import Step, apply
    from contrails.aggregate.stored import stored_out_of_fold
    from contrails.inspect.colours import colours_of, labelled_frame

    try:
        scored = stored_out_of_fold(of, folder, figures)
    except DataError as error:
        tell(f"no sample predictions: {error}")
        return None
    threshold, steps = float(figures["threshold"]), [Step(**step) for step in figures["steps"]]
    judged = judge(scored, dict.fromkeys(map(str, scored.folds), threshold), steps)
    cells, dataset = list[list[Any]](), scored.dataset
    for index, kind in choose(judged, _SAMPLES):
        row = int(scored.rows[index])
        mask, label = apply(scored.images(index), threshold, steps), dataset.hard(row)
        masks = {
            name: each[dataset.unpadded(row)].astype("uint8") for name, each in (("predicted", mask), ("label", label))
        }
        pixels = (255 * colours_of(dataset, row, labelled_frame(dataset))).round().astype("uint8")
        score = float(judged.dice[index] if judged.answers is None else judged.answers[index])
        known = [dataset.record_ids[row], str(scored.folds[index]), kind, score if score == score else None]
        cells.append([*known, Picture(pixels, masks)])
    name = "dice" if judged.answers is None else "probability"
    return Table(["record", "fold", "kind", name, "prediction"], cells)
