"""`contrails aggregate`: merge finished folds into an ensemble, score it and write a submission."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from contrails.aggregate.options import AUTO, Options
from contrails.cli.complete import complete_runs, complete_sites
from contrails.cli.options import FilePath, choose_device, device_option, find_ensemble, json_option, read_shard
from contrails.errors import DataError, RecipeError
from contrails.runs.folder import Run, open_run

if TYPE_CHECKING:
    import torch

    from contrails.aggregate.ensemble import Ensemble
    from contrails.dataset.store import Dataset


@click.command()
@click.argument("run_names", metavar="RUN...", shell_complete=complete_runs, nargs=-1, required=True)
@click.option("--data", type=FilePath(), help="Dataset file to predict; writes submission.csv into the ensemble.")
@click.option("--sample", type=FilePath(), help="The competition's sample submission; fixes the ids and their order.")
@click.option(
    "--weights",
    default="auto",
    show_default=True,
    help="Weights of each fold: best, final or another name in its done.json (ema, swa); last5 or best5, the average "
    "of that many epochs; soup, a greedy average; auto, the kind except soup with the best mean score.",
)
@click.option(
    "--merge",
    default="mean",
    show_default=True,
    help="How members are merged: mean (of probabilities), logits, median, median-mean (the median, cut at the mean "
    "of the members' thresholds) or vote.",
)
@click.option(
    "--tta",
    default="none",
    show_default=True,
    help="Test-time augmentation: flips, d4, scales or crop, several joined by +; none predicts each record once.",
)
@click.option(
    "--pad",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Pad each record by N mirrored pixels on each side before prediction.",
    metavar="N",
)
@click.option(
    "--precision",
    default="fp32",
    show_default=True,
    help="Precision of the networks: fp32, bf16 or fp16. If lower, records are also predicted out of fold in fp32, to "
    "measure how the Dice changes.",
)
@click.option("--fit-weights", is_flag=True, help="Fit the weight of each of several runs on out-of-fold predictions.")
@click.option(
    "--average-folds", is_flag=True, help="Merge the folds into one model by averaging weights; needs held-out records."
)
@click.option(
    "--gate",
    shell_complete=complete_runs,
    help="Ensemble that decides first whether a record is empty, such as a classifier; the mask of such a record is "
    "empty. A path or the name of a run.",
)
@click.option("--allow", is_flag=True, help="Merge members although their data, recipe or code differ.")
@click.option("--shard", metavar="I/N", help="Only make the out-of-fold predictions of every N-th fold from the I-th.")
@click.option("--jobs", "num_jobs", type=click.IntRange(1), help="Number of jobs for the out-of-fold predictions.")
@click.option(
    "--site", "site_name", shell_complete=complete_sites, help="Site of --jobs; default: as `contrails sites` shows."
)
@click.option("--name", default="default", show_default=True, help="Name of the ensemble's folder in RUN/aggregate.")
@click.option("-o", "--out", type=FilePath(), help="Folder of the ensemble, instead of RUN/aggregate/NAME.")
@device_option
@json_option
def aggregate(
    run_names: tuple[str, ...],
    data: Path | None,
    sample: Path | None,
    weights: str,
    merge: str,
    tta: str,
    pad: int,
    precision: str,
    fit_weights: bool,
    average_folds: bool,
    gate: str | None,
    allow: bool,
    shard: str | None,
    num_jobs: int | None,
    site_name: str | None,
    name: str,
    out: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Merge the finished folds of RUN into an ensemble.

    With --data, also writes a submission. Threshold and post-processing are fitted on out-of-fold predictions; each
    score says which records it is of. Several runs may differ in recipe, size and code, but not in data and file list.
    Running the same command again continues an interrupted aggregation, and makes a new ensemble if more folds have
    finished. The submission of another dataset is never overwritten; choose another --name for it.

    \b
    Example:
      contrails aggregate default --data data/demo/test.h5 --sample data/demo/raw/sample_submission.csv
      contrails aggregate default bright --tta d4 --fit-weights -o ensembles/both
      contrails aggregate positives_only --gate classifier --name two_stages
      contrails aggregate default --weights best5 --tta d4 --site mycluster --jobs 5
    """
    from contrails.dataset.store import open_dataset

    runs = [open_run(run_name) for run_name in run_names]
    path = out.absolute() if out is not None else runs[0].aggregate(name)
    check(click.get_current_context())
    dataset = open_dataset(data) if data is not None else None
    if dataset is not None:
        _require_same_records(path / "submission.csv", dataset)
    if num_jobs is not None:
        _submit_jobs(runs, path, num_jobs, site_name)
        return
    import torch

    from contrails.aggregate.assemble import make_ensemble, predict_shard
    from contrails.cli.results.figures import show_ensemble, warn_of_classifiers

    gate_path = str(find_ensemble(gate).absolute()) if gate is not None else ""
    options = Options(weights, merge, tta, pad, fit_weights, average_folds, allow, gate_path, precision)
    chosen = choose_device(device)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if shard is not None:
        for member in predict_shard(runs, path, options, read_shard(shard), chosen):
            click.echo(f"{member}: predicted out of fold")
        return
    ensemble = make_ensemble(runs, path, options, chosen)
    if dataset is not None:
        warn_of_classifiers(ensemble)
    submission = _submit(ensemble, dataset, sample, chosen) if dataset is not None else None
    if as_json:
        result = {"ensemble": str(path), "threshold": ensemble.threshold, "complete": ensemble.complete}
        result |= {"folds": ensemble.folds, "steps": [asdict(step) for step in ensemble.steps]}
        click.echo(json.dumps(result | {"scores": ensemble.scores, "submission": submission and str(submission)}))
    else:
        show_ensemble(ensemble)
        if submission is not None:
            partial = "" if ensemble.complete else f" (partial: {ensemble.folds})"
            click.echo(f"submission: {submission}{partial}")


def check(context: click.Context) -> None:
    """Check the options before hours of work, without torch and before the runs have finished.

    Raises:
        click.UsageError: two options that cannot be combined.
        RecipeError, RunError, DataError: an option has an invalid value; a run, a gate or a file is missing.
    """
    from contrails.aggregate.output.submission import sample_ids
    from contrails.dataset.store import open_dataset

    given = context.params
    Options(**{key: given[key] for key in ("weights", "merge", "tta", "precision")}).require_known()
    if given["num_jobs"] is not None and given["weights"] == AUTO:
        raise RecipeError("--jobs: --weights auto compares all folds; choose one kind, such as --weights best5")
    if given["num_jobs"] is not None and given["shard"] is not None:
        raise click.UsageError("give --jobs N for all shards, or --shard I/N for one, not both")
    if given["num_jobs"] is None and given["site_name"] is not None:
        raise click.UsageError("--site is for --jobs; without --jobs the ensemble is made on this machine")
    if given["sample"] is not None and given["data"] is None:
        raise click.UsageError("--sample fixes the ids of a submission, which needs --data; give --data too")
    if given["shard"] is not None:
        read_shard(given["shard"])
    for run_name in given["run_names"][1:]:
        open_run(run_name)
    if given["gate"] is not None:
        find_ensemble(given["gate"])
    if given["data"] is not None:
        dataset = open_dataset(given["data"])
        if given["sample"] is not None:
            sample_ids(given["sample"], set(dataset.whole_shapes), dataset.convention)


def options_of(context: click.Context, **instead: Any) -> list[str]:
    """Return the further runs and the options as words of a command, with absolute paths; `instead` replaces values."""
    values = context.params | instead
    if values["gate"] is not None:
        values["gate"] = find_ensemble(values["gate"])
    words = [str(open_run(run_name).path) for run_name in values["run_names"][1:]]
    for option in context.command.params:
        value = values[str(option.name)]
        if isinstance(option, click.Argument) or value is None or value is False:
            continue
        text = str(value.absolute() if isinstance(value, Path) else value)
        words += [option.opts[-1]] if value is True else [option.opts[-1], text]
    return words


def _submit_jobs(runs: list[Run], path: Path, num_jobs: int, site_name: str | None) -> None:
    from contrails.cluster.queue.shards import submit_aggregation
    from contrails.cluster.schedulers.sites import find_site

    options = options_of(click.get_current_context(), out=path, num_jobs=None, site_name=None, as_json=False)
    words = ["aggregate", str(runs[0].path), *options]
    for what, outcome in submit_aggregation(path, words, num_jobs, find_site(site_name)).items():
        click.echo(f"{what}: {outcome}")


def _require_same_records(submission: Path, dataset: "Dataset") -> None:
    """Check that an existing submission has the record ids of this dataset, so that it may be replaced.

    Raises:
        DataError: it has other ids.
    """
    from contrails.aggregate.output.submission import sample_ids

    if not submission.exists():
        return
    try:
        sample_ids(submission, set(dataset.whole_shapes), dataset.convention)
    except DataError as error:
        raise DataError(
            f"{submission} is the submission of another dataset, with other records; "
            "give another --name, or remove the file"
        ) from error


def _submit(ensemble: "Ensemble", dataset: "Dataset", sample: Path | None, device: "torch.device") -> Path:
    import numpy as np

    from contrails.aggregate.apply import masks_of, predict_into
    from contrails.aggregate.members.untile import in_batches
    from contrails.aggregate.output.submission import check_submission, write_submission

    path = ensemble.path / "submission.csv"
    file = ensemble.path / "predictions" / f"{dataset.path.stem}.h5"
    probabilities = predict_into(ensemble, dataset, np.arange(dataset.num_records), file, device)
    masks = ((whole.scene.name, mask) for whole, mask in masks_of(ensemble, dataset, in_batches(probabilities)))
    write_submission(path, masks, sample, dataset.convention)
    if not check_submission(path, dataset.whole_shapes, convention=dataset.convention).positive_pixels:
        click.echo("warning: every mask of the submission is empty", err=True)
    return path
