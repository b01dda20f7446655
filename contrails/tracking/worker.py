"""The process that talks to Weights & Biases: `python -m contrails.tracking.worker RUN FOLD|--aggregate NAME ID`.

The only module that imports wandb. Its last line of output is JSON: the name of the offline folder, if it wrote one.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb

from contrails.aggregate.judged import choose, judge
from contrails.aggregate.postprocess import Step, apply
from contrails.aggregate.stored import read_figures, stored_out_of_fold
from contrails.config import read_toml
from contrails.data.colours import colours_of, labelled_frame
from contrails.errors import ContrailsError, DataError
from contrails.files import read_hint
from contrails.history import fold_metrics
from contrails.progress import tell
from contrails.runs import Fold, Run
from contrails.tracking.projection import has_key

_PROJECT = "contrails"
_FINISH_TIMEOUT_S = 300
_SAMPLES = 16
"""Records in the table of predictions: each costs three files."""


def send_fold(fold: Fold, run_id: str) -> str | None:
    """Send the rows after those that W&B holds, and say where the weights are; return the offline folder's name."""
    finished = fold.done.exists()
    config = _config(fold.run) | {"fold": fold.key, "attempts": [read_hint(attempt.job) for attempt in fold.attempts()]}
    name = f"fold{fold.key}"
    with _opened(fold.path, run_id, fold.run.name, "train", name, config, finished=finished) as run:
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        # a row is a step of W&B's own count: what it holds are the first ones, in the same order.
        # Never step=: W&B drops a row whose step is not larger than the last one.
        for row in fold_metrics(fold)[run.step :]:
            run.log(row)
        if finished:
            _refer(run, f"{fold.run.name}-{name}", "weights", sorted(fold.weights.glob("*.safetensors")))
    return _offline_folder(run)


def send_aggregate(of: Run, folder: Path, run_id: str) -> str | None:
    """Send scores, decisions and samples of an aggregation; return the offline folder's name."""
    figures = read_figures(folder)
    if figures is None:
        raise DataError(f"{folder} holds no aggregation of this version; run `contrails aggregate {of.typed}` again")
    config = _config(of) | {key: figures[key] for key in ("options", "request", "members", "folds", "complete")}
    with _opened(folder, run_id, of.name, "aggregate", folder.name, config, finished=True) as run:
        scores = figures["scores"]
        run.summary.update(_numbers(scores) | {"threshold": figures["threshold"]})
        tables = {"predictions": _samples(of, folder, figures)}
        if decisions := scores.get("decisions"):
            tables["decisions"] = wandb.Table(list(decisions[0]), [list(row.values()) for row in decisions])
        run.log({name: table for name, table in tables.items() if table is not None})
        _refer(run, f"{of.name}-{folder.name}", "ensemble", sorted(folder.glob("*.safetensors")))
    return _offline_folder(run)


@contextmanager
def _opened(
    folder: Path, run_id: str, group: str, job_type: str, name: str, config: dict[str, Any], *, finished: bool
) -> Iterator["wandb.Run"]:
    """Open a W&B run, and wait within limits for what it sends."""
    settings = wandb.Settings(
        finish_timeout=_FINISH_TIMEOUT_S,
        finish_timeout_raises=True,
        console="off",
        silent=True,
        disable_git=True,
        disable_code=True,
        x_disable_stats=True,
        x_save_requirements=False,
        x_update_finish_state=finished,
    )
    opened = wandb.init(
        project=os.environ.get("WANDB_PROJECT", _PROJECT),
        id=run_id,
        resume="allow",
        dir=str(folder),
        mode="online" if has_key() else "offline",
        settings=settings,
        group=group,
        job_type=job_type,
        name=name,
    )
    with opened as run:
        run.config.update(config, allow_val_change=True)
        yield run


def _config(run: Run) -> dict[str, Any]:
    """Return recipe, data and site as they were frozen, and where the run comes from."""
    made = read_hint(run.provenance)
    return read_toml(run.toml, "a run") | {"provenance": {key: made[key] for key in made if key != "changes"}}


def _numbers(scores: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the figures with dotted names, without tables."""
    found: dict[str, Any] = {}
    for key, value in scores.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float | str):
            found[f"{prefix}{key}"] = value
    return found


def _samples(of: Run, folder: Path, figures: dict[str, Any]) -> "wandb.Table | None":
    """Return records with their label and the member's out-of-fold mask; None where the predictions are gone."""
    try:
        scored = stored_out_of_fold(of, folder, figures)
    except DataError as error:
        tell(f"no sample predictions: {error}")
        return None
    threshold, steps = float(figures["threshold"]), [Step(**step) for step in figures["steps"]]
    judged = judge(scored, dict.fromkeys(map(str, scored.parts), threshold), steps)
    table, dataset = wandb.Table(["record", "fold", "kind", "dice", "prediction"]), scored.dataset
    for index, kind in choose(judged, _SAMPLES):
        row = int(scored.rows[index])
        mask, label = apply(scored.probabilities(index), threshold, steps), scored.truth(index)[0]
        layers = {
            name: {"mask_data": each[dataset.unpadded(row)].astype("uint8"), "class_labels": {1: name}}
            for name, each in (("predicted", mask), ("label", label))
        }
        picture = (255 * colours_of(dataset, row, labelled_frame(dataset))).round().astype("uint8")
        dice = float(judged.dice[index])
        cells = dataset.record_ids[row], str(scored.parts[index]), kind, dice if dice == dice else None
        table.add_data(*cells, wandb.Image(picture, masks=layers))
    return table


def _refer(run: "wandb.Run", name: str, kind: str, files: list[Path]) -> None:
    """Say where files are, without sending them."""
    if not files:
        return
    artifact = wandb.Artifact("".join(c if (c.isalnum() and c.isascii()) or c in "._-" else "-" for c in name), kind)
    for path in files:
        artifact.add_reference(path.absolute().as_uri(), name=path.name, checksum=False)
    run.log_artifact(artifact)


def _offline_folder(run: "wandb.Run") -> str | None:
    return Path(run.dir).parent.name if run.settings.mode == "offline" else None


def main() -> None:
    """Project a fold or an aggregation."""
    of, *what, run_id = sys.argv[1:]
    run = Run(Path(of))
    try:
        if what[0] == "--aggregate":
            offline = send_aggregate(run, run.aggregate(what[1]), run_id)
        else:
            offline = send_fold(run.fold(what[0]), run_id)
    except (
        wandb.Error,
        ContrailsError,
        OSError,
        TimeoutError,
    ) as error:  # with wandb-core killed: a ConnectionResetError
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps({"offline": offline}))  # noqa: T201


if __name__ == "__main__":
    main()
