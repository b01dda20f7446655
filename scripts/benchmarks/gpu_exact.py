"""The sections of `scripts/bench gpu` about bits: kills and resume, gradients in two processes, every architecture."""

import hashlib
import itertools
import json
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from table import Result, left_out
from work import (
    JOBS,
    Bench,
    Step,
    make_deterministic,
    new_run,
    random_batch,
    require_done,
    start,
    start_fold,
    wait_until,
)

from contrails.cluster.check.drill import WAYS, result_of, small_recipe
from contrails.errors import RecipeError
from contrails.files import append_json_line, read_json_lines
from contrails.models.names import known, require_known
from contrails.models.sizes import require_size
from contrails.recipe.recipe import Recipe, load_recipe, override
from contrails.runs.folder import Attempt, Fold

SIDE = 256
"""Side of a record, in pixels."""

KILLS = ("SIGKILL", "SIGTERM", "SIGKILL while a snapshot is written", "SIGKILL just after a snapshot")
FAMILIES = (
    *("resnet18", "tu-resnest14d", "efficientnet-b0", "mit_b0", "tu-convnextv2_atto", "tu-maxvit_pico_rw_256"),
    "tu-vit_tiny_patch16_224",
)
"""Encoders of six families, and the one that DPT needs."""


def kills(bench: Bench) -> Iterator[Result]:
    """Train small folds undisturbed and killed, in both precisions, and compare weights and metrics."""
    for precision in ("fp32", "bf16"):
        name = f"kills and resume in {precision}: bits equal to the undisturbed training"
        recipe = override(
            small_recipe(bench.data, len(KILLS)),
            [f"train.precision={precision}", f"train.epochs={6 if bench.is_tiny else 60}", "data.limit=8"],
        )
        undisturbed, killed = (
            new_run(bench.folder / f"{precision}-{kind}", recipe, bench.device.type, 1).fold("0")
            for kind in ("undisturbed", "killed")
        )
        start_fold(undisturbed).join()
        require_done(undisturbed)
        done = _kill(killed, KILLS[:1] if bench.is_tiny else KILLS)
        start_fold(killed).join()
        require_done(killed)
        results = [result_of(fold) for fold in (undisturbed, killed)]
        is_equal = results[0] == results[1]
        yield Result(name, int(is_equal), "", "1", is_equal and done > 0, {"kills": done, "steps": results[0]["step"]})


def _kill(fold: Fold, ways: tuple[str, ...]) -> int:
    """Interrupt a fold in each of these ways, each time while it trains; return how many times it was."""
    chance = random.Random(0)
    for count, way in enumerate(ways):
        last = max((step for attempt in fold.attempts() for step in _steps(attempt)), default=0)
        process = start_fold(fold)
        wait_until(partial(_has_stepped, fold, last), process)
        time.sleep(chance.uniform(0, 0.2))
        if not process.is_alive() or fold.done.exists():
            process.join()
            return count
        WAYS[way](fold.attempts()[-1])
        process.join()
    return len(ways)


def _has_stepped(fold: Fold, last: int) -> bool:
    attempts = fold.attempts()
    return bool(attempts) and max(_steps(attempts[-1]), default=0) > last


def _steps(attempt: Attempt) -> list[int]:
    return [row["step"] for row in read_json_lines(attempt.metrics) if "train/loss" in row]


def two_processes(bench: Bench) -> Iterator[Result]:
    """Compare the outputs and gradients of each model of `jobs/`, made in two processes."""
    files = [bench.folder / f"{number}.jsonl" for number in range(2)]
    processes = [start(_write_digests, bench, file) for file in files]
    for process in processes:
        process.join()
    codes = [process.exitcode for process in processes if process.exitcode]
    why = f"a process ended with exit code {codes[0]}" if codes else "not reached in time"
    first, second = ({row["model"]: row for row in read_json_lines(file)} for file in files)
    wanted = models_of_jobs(bench)
    equal = 0
    for name in wanted:
        found = [rows.get(name, {"problem": why}) for rows in (first, second)]
        problem = next((each["problem"] for each in found if "problem" in each), "other bits in another process")
        if "problem" in found[0] or found[0] != found[1]:
            yield left_out(f"gradients of {name}", problem)
        else:
            equal += 1
    goal = len(wanted)
    yield Result("models of jobs/ with equal gradients in two processes", equal, "", f"{goal}", equal == goal)


def _write_digests(bench: Bench, file: Path) -> None:
    make_deterministic()
    for name, recipe in models_of_jobs(bench).items():
        if bench.is_late:
            return
        try:
            row = {"model": name, "digest": _digest(recipe, bench)}
        except RuntimeError as error:  # torch's, for no memory or an operation without a deterministic kernel
            row = {"model": name, "problem": str(error).splitlines()[0]}
        append_json_line(file, row)


def models_of_jobs(bench: Bench) -> dict[str, Recipe]:
    """Return the recipes of `jobs/` by name, each model with its loss once; on a CPU two small ones."""
    found: dict[str, tuple[str, Recipe]] = {}
    for path in sorted(JOBS.glob("*.toml")):
        recipe = load_recipe(path, ["model.pretrained="])
        made_of = recipe.model.model_dump_json(), recipe.loss.model_dump_json()
        seen = recipe.data.size or SIDE, recipe.data.frames, recipe.data.composite
        found.setdefault(json.dumps([made_of, seen]), (path.stem, recipe))
    recipes = dict(found.values())
    return {name: recipes[name] for name in ("default", "resnet18")} if bench.is_tiny else recipes


def _digest(recipe: Recipe, bench: Bench) -> str:
    """Return the SHA-256 of the outputs and gradients of a step of two records."""
    batch = random_batch(recipe, 2, 64 if bench.is_tiny else SIDE, bench.device)
    step = Step(recipe, batch.inputs.shape[-3], bench.device)
    loss, digest = step.gradients(batch), hashlib.sha256()
    gradients = (parameter.grad for parameter in step.model.parameters() if parameter.grad is not None)
    for tensor in itertools.chain([loss], gradients):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def every_architecture(bench: Bench) -> Iterator[Result]:
    """Make a step of each architecture with an encoder of each family under deterministic algorithms."""
    make_deterministic()
    architectures, encoders, side = list(known()["architectures"]), list(FAMILIES), SIDE
    if bench.is_tiny:
        architectures, encoders, side = architectures[:2], encoders[:1], 64
    ran, possible, late = 0, 0, 0
    for encoder, architecture in itertools.product(encoders, architectures):
        recipe = _combination(architecture, encoder, side)
        try:
            require_known(recipe)
            require_size(recipe, side, side)
        except RecipeError:  # the two do not go together
            continue
        possible += 1
        if bench.is_late:
            late += 1
            continue
        try:
            Step(recipe, 3, bench.device)(random_batch(recipe, 2, side, bench.device))
            bench.synchronize()
            ran += 1
        except RuntimeError as error:  # torch's, for no memory or an operation without a deterministic kernel
            yield left_out(f"a deterministic step of {architecture} with {encoder}", str(error).splitlines()[0])
    what = f"deterministic steps of {len(architectures)} architectures with {len(encoders)} encoders"
    yield Result(what, ran, "", f"{possible}", ran == possible, {"not reached in time": late} if late else {})


def _combination(architecture: str, encoder: str, side: int) -> Recipe:
    """Return the recipe of a combination; DPT takes four levels."""
    model = {"architecture": architecture, "encoder": encoder, "encoder_depth": 4 if architecture == "DPT" else 5}
    data = {"dataset": "none.h5", "filelist": "none.csv", "size": side}
    return Recipe.model_validate({"data": data, "model": model, "train": {"precision": "bf16"}})
