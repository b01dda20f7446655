"""Creating a run: after all checks, recipe, site, data and code are frozen in its folder.

`run.toml` is written last and makes the run exist, so an interrupted creation leaves nothing that looks like a run.
"""

import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from contrails.cluster.queue.freeze import freeze_code, package_folder
from contrails.cluster.schedulers.sites import THIS_MACHINE, Site, holds_copy, require_scheduler, resolve
from contrails.cluster.status.fold_state import ALIVE, fold_state
from contrails.cluster.submit.lineage import find_lineage, require_parents
from contrails.dataset.store import open_dataset
from contrails.errors import RecipeError, RunError
from contrails.files import sha256, to_json, write_atomic
from contrails.folds.exclusions import excluded_rows
from contrails.folds.filelists import read_filelist, require_match
from contrails.folds.pseudo import all_pseudo, require_pseudo
from contrails.inputs.composites import channels_of
from contrails.inputs.sampling import require_crop_fits, require_ranks_fit
from contrails.models.names import require_known, require_useful
from contrails.models.pretrained import find_pretrained
from contrails.models.sizes import require_piece, require_size
from contrails.recipe.reading import keys
from contrails.recipe.recipe import Recipe, to_toml
from contrails.runs.config import ComputeSection, DataIdentity, RunConfig
from contrails.runs.folder import ALL, Run, new_run_path, open_run
from contrails.user import user_name


def choose_folds(recipe: Recipe, num_folds: int | None, fold: str | None) -> list[str]:
    """Return the folds that `--folds N`, `--fold 0,3` or `--fold all` select; without either, all of the file list.

    Raises:
        RecipeError: the file list has another number of folds, or no such fold.
    """
    available = read_filelist(recipe.data.filelist).num_folds
    if num_folds is not None and num_folds != available:
        other = (  # one fold cannot be split
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
    """Create the run `name`, or open it if it exists with the same recipe and data; `folds` will be trained first.

    Raises:
        RunError: a run of this name has another recipe, or a fold lacks its start weights; nothing is created.
        RecipeError, DataError: dataset, file list, pseudo-labels and recipe do not match; nothing is created.
        ClusterError: the scheduler of the site is not on this machine; nothing is created.
    """
    run, config = plan_run(recipe, site, name)
    if run.toml.is_file():
        return run, config
    require_inputs(run, config, folds)
    require_scheduler(site)
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
    _require_one_gpu(recipe, resolved, resolved.num_ranks)
    assert resolved.device != "auto"
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
    """Move a run to another site, keeping its number of threads; return the new content of `run.toml`.

    Folds may be alive if only the profile has changed, such as its memory; they keep what they were submitted with.

    Raises:
        RunError: a fold is alive, and scheduler or device change.
        RecipeError, NodeError: the site lacks a file that its profile names, or a GPU; or its nodes do not fit the
            number of ranks, which stays too.
        ClusterError: its scheduler is not on this machine.
    """
    require_scheduler(site)
    try:
        site.ranks_per_node(config.compute.num_ranks)
    except ValueError as error:
        raise RecipeError(f"site {site.name}, for {run.name}: {error}") from error
    resolved = resolve(site.with_files(), config.data.num_folds)
    resolved = resolved.model_copy(update={"num_threads": config.compute.num_threads})
    _require_one_gpu(config.recipe, resolved, config.compute.num_ranks)
    before = config.site.get("scheduler", THIS_MACHINE), config.compute.device
    if (resolved.scheduler, resolved.device) != before:
        _require_nothing_alive(run, "moves to another site")
    moved = config.model_copy(
        update={
            "site": resolved.model_dump(mode="json", exclude_none=True),
            "compute": config.compute.model_copy(update={"device": resolved.device}),
        }
    )
    write_atomic(run.toml, to_toml(moved))
    return moved


def refreeze(run: Run, config: RunConfig) -> RunConfig:
    """Replace the frozen code of a run by the running code; the old code is kept beside it.

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
            f"{run.name} {what}, but its folds {', '.join(alive)} are alive; wait until they end, or stop them first "
            f"with `contrails cancel {run.typed}`"
        )


def require_inputs(run: Run, config: RunConfig, folds: Sequence[str]) -> None:
    """Check that folds have their start weights and pseudo-labels; raises as `create_run` does."""
    require_parents(run, config, folds)
    require_pseudo(config, folds)


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    paths = {key: getattr(recipe.data, key) for key in ("dataset", "filelist", "exclude")}
    data: dict[str, Any] = {key: path.absolute() for key, path in paths.items() if path is not None}
    data["pseudo"] = tuple(each.model_copy(update={"folder": each.folder.absolute()}) for each in recipe.data.pseudo)
    changed: dict[str, Any] = {"data": recipe.data.model_copy(update=data)}
    if recipe.init.run is not None:
        changed["init"] = recipe.init.model_copy(update={"run": open_run(str(recipe.init.run)).path})
    return recipe.model_copy(update=changed)


def _check_data(recipe: Recipe) -> DataIdentity:
    """Open the files that the recipe names and check that they match, before anything is created."""
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
            f"data.residency = 'ram': {path} has {path.stat().st_size / 1e9:.3g} GB, but a job at {site.name} has only "
            f"{memory_gb:g} GB; raise memory_gb of the site profile, or set data.residency = 'mmap'"
        )


def _require_one_gpu(recipe: Recipe, site: Site, num_ranks: int) -> None:
    if recipe.train.cuda_graph and (site.device, num_ranks) != ("cuda", 1):
        raise RecipeError(
            f"train.cuda_graph = true: expected device = 'cuda' and num_ranks = 1, found device = '{site.device}' and "
            f"num_ranks = {num_ranks} at {site.name}; choose another --site, or make a run with "
            "-o train.cuda_graph=false"
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
    """Return who made the run, from which commit and with which versions."""
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
        "versions": _installed_versions(),
    }


def _installed_versions() -> dict[str, str]:
    """Return the versions of all packages, by the names of their folders: reading their metadata would take 0.2 s."""
    versions: dict[str, str] = {}
    for folder in sys.path:
        for path in Path(folder).glob("*.dist-info"):
            name, _, version = path.stem.rpartition("-")
            versions.setdefault(name, version)  # the first on the path is the one that is imported
    return versions


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
