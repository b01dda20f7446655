"""From a recipe to jobs: create the run once, then submit whatever of it is not finished and not alive.

`run.toml` is written last and makes the run exist, so an interrupted creation leaves nothing that looks like a run.
"""

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from contrails.cluster.queue.freeze import freeze_code, package_folder
from contrails.cluster.queue.journal import newest_submissions, submissions
from contrails.cluster.queue.requests import fold_request
from contrails.cluster.queue.submission import pass_on, reconcile, reference, submit_jobs, submitting
from contrails.cluster.schedulers.base import Job, Request, scheduler_of
from contrails.cluster.schedulers.devices import require_devices
from contrails.cluster.schedulers.sites import THIS_MACHINE, Site, holds_copy, resolve
from contrails.cluster.schedulers.slots import DEVICES
from contrails.cluster.status.fold_state import ALIVE, DAMAGED, DONE, fold_state
from contrails.cluster.submit.lineage import find_lineage, require_parents
from contrails.cluster.submit.orphans import adopt_orphans
from contrails.dataset.store import open_dataset
from contrails.errors import RecipeError, RunError, StorageError
from contrails.files import sha256, storage, to_json, write_atomic
from contrails.folds.exclusions import excluded_rows
from contrails.folds.filelists import read_filelist, require_match
from contrails.folds.pseudo import all_pseudo, require_pseudo
from contrails.inputs.composites import channels_of
from contrails.inputs.sampling import require_crop_fits, require_ranks_fit
from contrails.models.names import require_deterministic, require_known, require_useful
from contrails.models.pretrained import find_pretrained
from contrails.models.sizes import require_piece, require_size
from contrails.recipe.reading import keys, parse
from contrails.recipe.recipe import Recipe, to_toml
from contrails.runs.config import ComputeSection, DataIdentity, RunConfig
from contrails.runs.folder import ALL, Fold, Run, new_run_path, open_run
from contrails.user import user_name


def choose_folds(recipe: Recipe, num_folds: int | None, fold: str | None) -> list[str]:
    """Return the folds that `--folds N` or `--fold 0,3` or `--fold all` mean; all of the file list without either.

    Raises:
        RecipeError: the file list has another number of folds, or not this fold.
    """
    available = read_filelist(recipe.data.filelist).num_folds
    if num_folds is not None and num_folds != available:
        other = (  # what a single fold trains on are others
            f"make a file list with `contrails split {shlex.quote(str(recipe.data.dataset))} --folds {num_folds} "
            "-o NEW.csv`"
            if num_folds > 1
            else "--fold 0 for one of them"
        )
        raise RecipeError(
            f"--folds {num_folds}: the file list {recipe.data.filelist} has {available} folds; give "
            f"--folds {available}, or {other}"
        )
    if fold is None:
        return [str(number) for number in range(available)]
    chosen = [part.strip() for part in fold.split(",")]
    known = [*map(str, range(available)), ALL]
    wrong = [part for part in chosen if part not in known]
    if wrong:
        raise RecipeError(f"--fold {fold}: expected numbers from 0 to {available - 1}, or '{ALL}', found '{wrong[0]}'")
    return chosen


def create_run(recipe: Recipe, site: Site, name: str, folds: Sequence[str] = ()) -> tuple[Run, RunConfig]:
    """Create the run `name`, or open it if it exists with this recipe and these data; `folds` are to be trained first.

    Raises:
        RunError: a run of this name has another recipe, or a fold lacks what it starts from; nothing is created.
        RecipeError, DataError: dataset, file list, pseudo-labels and recipe do not fit together; nothing is created.
    """
    run, config = plan_run(recipe, site, name)
    if run.toml.is_file():
        return run, config
    _require_inputs(run, config, folds)
    run.create_folder()
    config = config.model_copy(update={"code": freeze_code(run)})
    write_atomic(run.provenance, to_json(_provenance()))
    write_atomic(run.toml, to_toml(config))
    return run, config


def plan_run(recipe: Recipe, site: Site, name: str) -> tuple[Run, RunConfig]:
    """Return what `create_run` would create or open, after the same checks; a new run has no code yet."""
    run = Run(new_run_path(name))
    recipe = _with_absolute_paths(recipe)
    identity = _check_data(recipe)
    if run.toml.is_file():
        config = run.read_config()
        _require_same(run, config, recipe, identity)
        return run, config
    lineage = find_lineage(recipe, identity)
    resolved = resolve(site.with_files(), identity.num_folds)
    require_ranks_fit(recipe, resolved.num_ranks)
    height, width = open_dataset(recipe.data.dataset).votes.shape[1:]
    require_piece(recipe, height, width, resolved.num_ranks)
    _require_memory(site, recipe)
    assert resolved.device != "auto"
    require_deterministic(recipe, resolved.device)
    return run, RunConfig(
        recipe=recipe,
        compute=ComputeSection(device=resolved.device, num_threads=resolved.num_threads, num_ranks=resolved.num_ranks),
        data=identity,
        site=resolved.model_dump(mode="json", exclude_none=True),
        code="",
        lineage=lineage,
        pretrained=find_pretrained(recipe),
    )


def move(run: Run, config: RunConfig, site: Site) -> RunConfig:
    """Let a run go on at another site, with its own number of threads; return what `run.toml` says from now on.

    Folds that are alive keep what they have where only the profile has changed, such as the memory that it asks for.

    Raises:
        RunError: a fold is alive where the run was, under another scheduler or on another device.
        RecipeError, NodeError: the site lacks a file that its profile names, or a GPU.
    """
    resolved = resolve(site.with_files(), config.data.num_folds)
    resolved = resolved.model_copy(update={"num_threads": config.compute.num_threads})
    before = config.site.get("scheduler", THIS_MACHINE), config.compute.device
    if (resolved.scheduler, resolved.device) != before:
        _require_nothing_alive(run, "moves to another site")
    require_deterministic(config.recipe, resolved.device)
    moved = config.model_copy(
        update={
            "site": resolved.model_dump(mode="json", exclude_none=True),
            "compute": config.compute.model_copy(update={"device": resolved.device}),
        }
    )
    write_atomic(run.toml, to_toml(moved))
    return moved


def refreeze(run: Run, config: RunConfig) -> RunConfig:
    """Put the code of today in the place of a run's frozen code, which is kept beside it.

    Raises:
        RunError: a fold is alive.
    """
    _require_nothing_alive(run, "changes its code")
    before = run.code.with_name(f"code-{config.code[:16]}-{time.time_ns()}")
    changed = config.model_copy(update={"code": freeze_code(run, before=before)})
    write_atomic(run.toml, to_toml(changed))
    return changed


def _require_nothing_alive(run: Run, what: str) -> None:
    alive = [fold.key for fold in run.folds() if fold_state(fold).state in ALIVE]
    if alive:
        raise RunError(
            f"{run.name} {what}, and its folds {', '.join(alive)} are alive; wait for their end, or stop them first "
            f"with `contrails cancel {run.typed}`"
        )


def grouped(folds: list[str], folds_per_job: int) -> list[list[str]]:
    """Return the folds of each job.

    >>> grouped(["0", "1", "2"], 2)
    [['0', '1'], ['2']]
    """
    return [folds[start : start + folds_per_job] for start in range(0, len(folds), folds_per_job)]


def submit_folds(
    run: Run, config: RunConfig, folds: list[str], folds_per_job: int = 1, *, after: Mapping[str, Path] | None = None
) -> dict[str, str]:
    """Submit the folds that are neither finished nor alive, `folds_per_job` to a job.

    Args:
        run: the run, which exists.
        config: its frozen configuration; the site in it says where.
        folds: keys of the folds that are wanted.
        folds_per_job: how many train side by side in one job.
        after: ids of jobs that must have succeeded before, with submitit's folder of each.

    Returns:
        What happened to each: a job id, or its state.

    Raises:
        ClusterError: the scheduler refuses or does not answer.
        NodeError: this machine has no GPU for the run, or CUDA_VISIBLE_DEVICES hides them.
        StorageError: the result of a fold is damaged.
    """
    site = parse(Site, config.site, str(run.toml))
    scheduler = scheduler_of(site)
    can = scheduler.CAPABILITIES
    with submitting(run):
        states = _checked_states(run, config, folds, reconcile(run, site) if can.has_queue else None)
        wanted = _wanted(states)
        on_gpus_here = bool(wanted) and can.runs_here and config.compute.device == "cuda"
        devices = require_devices(config.compute.num_ranks) if on_gpus_here else ()
        for key in wanted:
            _prepare(run.fold(key))
        _end_what_is_left(run, site, wanted)
        groups = grouped(wanted, folds_per_job)
        requests = [fold_request(run, config.compute.num_threads, group, after=after) for group in groups]
        requests = [_with_devices(request, devices) for request in requests]
        outcomes = submit_jobs(run, site, requests, is_alone=not ALIVE & set(states.values()))
        pass_on(run, scheduler)
    if can.has_queue:
        adopt_orphans(run)
    return states | outcomes


def _with_devices(request: Request, devices: Sequence[str]) -> Request:
    """Return the request of a job that may use these GPUs of this machine."""
    if not devices:
        return request
    return replace(request, environment=(request.environment or {}) | {DEVICES: ",".join(devices)})


def _end_what_is_left(run: Run, site: Site, folds: Sequence[str]) -> None:
    """End what a scheduler may keep of the last jobs of folds that nobody trains: a held one that will never start."""
    newest = {fold: job for fold, job in newest_submissions(submissions(run)).items() if fold in folds}
    jobs = {job.name: job for job in newest.values() if set(job.folds) <= set(folds)}
    if jobs:
        scheduler_of(site).cancel([reference(run, job) for job in jobs.values()])


def plan_folds(run: Run, config: RunConfig, folds: list[str], folds_per_job: int = 1) -> dict[str, str]:
    """Return what `submit_folds` would do with each fold, after the same checks; nothing is submitted."""
    states = _checked_states(run, config, folds, None)
    planned = {key: f"{state}, stays as it is" for key, state in states.items()}
    for number, group in enumerate(grouped(_wanted(states), folds_per_job), start=1):
        planned |= {key: f"{states[key]}, would be submitted in job {number}" for key in group}
    return planned


def _require_inputs(run: Run, config: RunConfig, folds: Sequence[str]) -> None:
    require_parents(run, config, folds)
    require_pseudo(config, folds)


def _checked_states(run: Run, config: RunConfig, folds: list[str], jobs: Mapping[str, Job] | None) -> dict[str, str]:
    _require_inputs(run, config, folds)
    found = {key: fold_state(run.fold(key), jobs) for key in folds}
    damaged = [state.reason for state in found.values() if state.state == DAMAGED]
    if damaged:
        raise StorageError("\n".join(str(reason) for reason in damaged))
    return {key: state.state for key, state in found.items()}


def _wanted(states: dict[str, str]) -> list[str]:
    return [key for key, state in states.items() if state not in ALIVE | {DONE}]


def _prepare(fold: Fold) -> None:
    """Make the fold's folder, and forget that it was cancelled."""
    with storage(fold.path, "create"):
        fold.path.mkdir(parents=True, exist_ok=True)
        if fold.cancelled.exists():
            fold.cancelled.replace(fold.cancelled.with_suffix(".before"))


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    paths = {key: getattr(recipe.data, key) for key in ("dataset", "filelist", "exclude")}
    data: dict[str, Any] = {key: path.absolute() for key, path in paths.items() if path is not None}
    data["pseudo"] = tuple(each.model_copy(update={"folder": each.folder.absolute()}) for each in recipe.data.pseudo)
    changed: dict[str, Any] = {"data": recipe.data.model_copy(update=data)}
    if recipe.init.run is not None:
        changed["init"] = recipe.init.model_copy(update={"run": open_run(str(recipe.init.run)).path})
    return recipe.model_copy(update=changed)


def _check_data(recipe: Recipe) -> DataIdentity:
    """Open what the recipe names and check that it fits, before anything is created."""
    require_known(recipe)
    require_useful(recipe)
    dataset, filelist = open_dataset(recipe.data.dataset), read_filelist(recipe.data.filelist)
    require_match(filelist, dataset.record_ids, str(recipe.data.filelist))
    channels_of(recipe.data, dataset.band_names, dataset.units)
    dataset.frame_positions(recipe.data.frames)
    require_crop_fits(recipe, dataset)
    require_size(recipe, *dataset.votes.shape[1:])
    excluded_rows(recipe.data.exclude, dataset)
    listed = sha256(recipe.data.filelist)
    return DataIdentity(
        dataset=dataset.fingerprint,
        filelist=listed,
        num_folds=filelist.num_folds,
        exclude=sha256(recipe.data.exclude) if recipe.data.exclude else "",
        pseudo=all_pseudo(recipe, filelist.num_folds, dataset, listed),
    )


def _require_memory(site: Site, recipe: Recipe) -> None:
    path, memory_gb = recipe.data.dataset, site.memory_gb
    if recipe.data.residency == "ram" and memory_gb is not None and not holds_copy(memory_gb, path):
        raise RecipeError(
            f"data.residency = 'ram': {path} has {path.stat().st_size / 1e9:.3g} GB, and a job at {site.name} has "
            f"{memory_gb:g} GB in all; raise memory_gb of the site's profile, or set data.residency = 'mmap'"
        )


def _require_same(run: Run, config: RunConfig, recipe: Recipe, identity: DataIdentity) -> None:
    old, new = config.recipe, recipe
    differing = [
        f"{key} = {_shown(_get(new, key))}, was {_shown(_get(old, key))}"
        for key, _ in keys(Recipe)
        if "[" not in key and _get(old, key) != _get(new, key)  # a list of tables is compared as one
    ]
    if config.data != identity:
        differing.append("the content of the dataset, the file list, the exclusion list or the pseudo-labels")
    if differing:
        raise RunError(
            f"the run {run.name} exists with another recipe ({'; '.join(differing)}); give --name for a new run, "
            f"or go on with its own recipe: `contrails resume {run.typed}`"
        )


def _get(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, Path) else repr(value)


def _provenance() -> dict[str, Any]:
    """Return who made the run, from what and with which versions."""
    clone = package_folder().parent
    return {
        "command": shlex.join(sys.argv),
        "folder": str(Path.cwd()),
        "user": user_name(),
        "host": socket.gethostname(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": sys.version,
        "commit": _git(clone, "rev-parse", "HEAD"),
        "changes": _git(clone, "status", "--porcelain"),
        "versions": {dist.metadata["Name"]: dist.version for dist in distributions()},
    }


def _git(folder: Path, *arguments: str) -> str | None:
    if not (folder / ".git").exists():
        return None
    environment = dict(os.environ) | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), *arguments], env=environment, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
