"""The experiment log: recipe, scores and cost of every run, read from the run folders.

Imports neither torch nor pandas and reads only small files, so that hundreds of runs are listed at once. A run of an
older version is listed with the values that it has.
"""

import hashlib
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from contrails.cluster.status.usage import UNUSED, Usage, usage_of
from contrails.errors import ContrailsError, StorageError
from contrails.files import append_json_line, read_hint, read_json_lines, read_toml, to_json, write_atomic
from contrails.recipe.recipe import Recipe
from contrails.runs.folder import Run, runs_root
from contrails.user import user_name


@dataclass(frozen=True)
class Entry:
    """A run in the log.

    `recipe` has every key, with defaults filled in; `differs` has those that differ from `compared_to`, which is the
    run that it started from, or the baseline. `dice` is the cross-fitted out-of-fold score of the aggregation. An
    aggregation of one fold has `one_fold` instead, at the threshold that is best on the fold's own validation records.
    `kind` is debug, overfit or drill for a run that is no experiment. `scored_by` is the unit that the scores count:
    pixel or record.
    """

    name: str
    created: str = ""
    user: str = ""
    compared_to: str = ""
    differs: dict[str, Any] = field(default_factory=dict)
    folds_done: int = 0
    folds: int = 0
    best_dice: float | None = None
    dice: float | None = None
    one_fold: float | None = None
    held_out: float | None = None
    leaderboard: float | None = None
    usage: Usage = UNUSED
    notes: tuple[str, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    kind: str = ""
    scored_by: str = "pixel"


def read_log(runs: Sequence[Run], baseline: Run | None = None) -> list[Entry]:
    """Return the entries of runs; each is compared to the run that it started from, or else to `baseline`.

    The default baseline is the oldest experiment.
    """
    entries = _remembered(runs)
    recipes = {entry.name: entry.recipe for entry in entries}
    if baseline is not None:
        recipes[baseline.name] = _entry(baseline).recipe
    experiments = (entry for entry in entries if entry.recipe and not entry.kind)
    oldest = min(experiments, key=lambda entry: (entry.created, entry.name), default=None)
    base = baseline.name if baseline is not None else oldest.name if oldest is not None else ""
    return [_compared(entry, recipes, base) for entry in entries]


def add_note(run: Run, text: str, leaderboard: float | None) -> None:
    """Append a note and a leaderboard score to a run."""
    row = {"time": time.time(), "user": user_name(), "text": text, "leaderboard": leaderboard}
    append_json_line(run.notes, row, durable=True)


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of `new` that differ from `old`; None for a key that only `old` has."""
    return {key: new.get(key) for key in sorted({*old, *new}) if old.get(key) != new.get(key)}


def shown(values: dict[str, Any]) -> str:
    """Return keys and values as they would be typed after -o."""
    return ", ".join(f"{key}={_text(value)}" for key, value in values.items())


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_text, value))}]"
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _remembered(runs: Sequence[Run]) -> list[Entry]:
    """Return the entries of runs; those of finished runs are cached in a file under the root, which may be deleted."""
    cache = runs_root() / ".log.json"
    known = read_hint(cache)
    found = {str(run.path): (_stamp(run), run) for run in runs}
    entries = {}
    for path, (stamp, run) in found.items():
        kept = known.get(path, {})
        entries[path] = _from_json(kept["entry"]) if stamp and kept.get("stamp") == stamp else _entry(run)
    fresh = {path: {"stamp": stamp, "entry": asdict(entries[path])} for path, (stamp, _) in found.items() if stamp}
    if any(known.get(path, {}).get("stamp") != each["stamp"] for path, each in fresh.items()):
        with suppress(StorageError):  # the root may belong to another user
            write_atomic(cache, to_json({path: each for path, each in (known | fresh).items() if Path(path).exists()}))
    return list(entries.values())


def _stamp(run: Run) -> list[int | str]:
    """Return values that change when the entry of a finished run does; empty if the run is not finished."""
    folds = run.folds()
    if not folds or not all(fold.done.exists() for fold in folds):
        return []
    files = [run.toml, run.notes, run.aggregate("default") / "ensemble.json", *(fold.done for fold in folds)]
    return [_LAYOUT, *(path.stat().st_mtime_ns if path.exists() else 0 for path in files)]


def _from_json(content: dict[str, Any]) -> Entry:
    return Entry(**(content | {"usage": Usage(**content["usage"]), "notes": tuple(content["notes"])}))


def _entry(run: Run) -> Entry:
    try:
        return _read(run)
    except StorageError as error:
        return Entry(run.name, problem=str(error))


def _read(run: Run) -> Entry:
    try:
        frozen, problem = read_toml(run.toml, "a run"), ""
    except ContrailsError as error:
        frozen, problem = {}, str(error)
    made, figures = read_hint(run.provenance), read_hint(run.aggregate("default") / "ensemble.json")
    scores, folds = figures.get("scores", {}), run.folds()
    results = [read_hint(fold.done) for fold in folds]
    notes = read_json_lines(run.notes)
    best = [result["best_dice"] for result in results if result.get("best_dice") is not None]
    recipe = _filled(frozen) if frozen else {}
    by = "record" if recipe.get("model.task") == "classify" else "pixel"
    if scores.get("scored_by", "pixel") != by:  # the first versions counted a classifier's pixels
        scores = {}
    dice = scores.get("dice", scores.get("dice_cross_fitted"))
    return Entry(
        name=run.name,
        created=str(made.get("created", ""))[:19],
        user=str(made.get("user", "")),
        folds_done=sum(map(bool, results)),
        folds=frozen.get("data", {}).get("num_folds", len(folds)),
        best_dice=sum(best) / len(best) if best else None,
        dice=dice,
        one_fold=None if dice is not None else scores.get("dice_fitted_threshold"),
        held_out=(scores.get("held_out") or {}).get("dice"),
        leaderboard=max((row["leaderboard"] for row in notes if row.get("leaderboard") is not None), default=None),
        usage=sum(usage_of(run).values(), UNUSED),
        notes=tuple(row["text"] for row in notes if row.get("text")),
        recipe=recipe,
        problem=problem,
        kind=_kind(recipe),
        scored_by=by,
    )


def _kind(recipe: dict[str, Any]) -> str:
    """Return the kind of a run that is no experiment; "" for an experiment."""
    if _OF_DRILL.fullmatch(Path(str(recipe.get("data.dataset", ""))).parent.name):
        return "drill"
    return "overfit" if recipe.get("data.overfit") else "debug" if recipe.get("data.limit") else ""


def _compared(entry: Entry, recipes: dict[str, dict[str, Any]], base: str) -> Entry:
    parent = Path(str(entry.recipe.get("init.run") or "")).name
    against = parent if parent in recipes else base
    if not entry.recipe or against == entry.name or not recipes.get(against):
        return entry
    return replace(entry, compared_to=against, differs=differences(recipes[against], entry.recipe))


def _filled(frozen: dict[str, Any]) -> dict[str, Any]:
    values = _DEFAULTS | _flat(frozen.get("recipe", {}))
    if values.get("train.steps"):  # then epochs are unused, even if an older version recorded them
        values.pop("train.epochs", None)
    return values


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


_OF_DRILL = re.compile(r"\.drill-[0-9a-f]{6}")
"""Pattern of the data folders that drills create."""


def _defaults() -> dict[str, Any]:
    """Return the default values of a recipe as TOML would read them, which has no null."""
    required = {"data": {"dataset": "-", "filelist": "-"}}
    values = _flat(Recipe.model_validate(required).model_dump(mode="json", exclude_none=True))
    return {key: value for key, value in values.items() if value != "-"}


_DEFAULTS = _defaults()
_LAYOUT = hashlib.sha256(
    to_json([[each.name for each in (*fields(Entry), *fields(Usage))], _DEFAULTS]).encode()
).hexdigest()[:16]
"""Names of the parts of an entry; a cached entry of another version is not used."""
