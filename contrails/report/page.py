"""The report of a run: one HTML file that loads nothing else.

It shows what exists: the metrics up to the last snapshot while folds train; also the out-of-fold predictions after an
aggregation. It says what is missing, and how to make it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from contrails import __version__
from contrails.aggregate.decide.judged import judge
from contrails.aggregate.decide.postprocess import Step
from contrails.aggregate.ensemble import read_description
from contrails.aggregate.members.scored import tally
from contrails.aggregate.stored import scored_by, stored_out_of_fold
from contrails.cluster.status.fold_state import FoldState
from contrails.cluster.status.usage import UNUSED
from contrails.dataset.layout import target_of
from contrails.errors import DataError
from contrails.files import read_hint
from contrails.progress import bar
from contrails.report.gallery import gallery_section
from contrails.report.html import parts, render, section
from contrails.report.naming import dice_by, dice_name, target_name
from contrails.report.scores import Words, scores_section
from contrails.report.training import attempts_section, curves_section, folds_section
from contrails.runs.folder import Run

_SECTIONS = {"folds": "Folds", "curves": "Training", "scores": "Predictions", "gallery": "Gallery"}
_SECTIONS |= {"attempts": "Attempts", "recipe": "Recipe"}
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def build_page(run: Run, states: Sequence[FoldState], folder: Path, num_records: int) -> Markup:
    """Return the report as HTML.

    Args:
        run: the run.
        states: the states of its folds.
        folder: folder of the aggregation to show, which may be missing.
        num_records: number of records in the gallery.
    """
    figures = read_description(folder)
    body = [
        folds_section(states, dice_name(run)),
        curves_section(run, dice_name(run)),
        *_predictions(run, folder, figures, num_records),
        attempts_section(run, states),
        _recipe(run),
    ]
    created = read_hint(run.provenance).get("created")
    about = "contrails run" + (f", created {str(created)[:16].replace('T', ' ')} UTC" if created else "")
    return render(
        "page.html",
        policy=_POLICY,
        name=run.name,
        about=f"{about}; this page shows it as of {datetime.now(UTC).strftime('%Y-%m-%d %H:%M')} UTC",
        tiles=_tiles(run, states, figures),
        sections=_SECTIONS,
        body=body,
        footer=f"Made by contrails {__version__} from {run.path}.",
    )


def _tiles(run: Run, states: Sequence[FoldState], figures: dict[str, Any] | None) -> list[tuple[str, str]]:
    """Return the numbers at the top of the page, each with its label."""
    done = sum(state.state == "done" for state in states)
    usage = sum((state.usage for state in states), UNUSED)
    device, hours = ("GPU-hours", usage.gpu_hours) if usage.gpu_hours else ("hours on the CPU", usage.hours)
    lost = hours * usage.hours_lost / usage.hours if usage.hours else 0.0
    best = [state.best_dice for state in states if state.best_dice is not None]
    return [
        (f"{done} of {len(states)}", "folds finished"),
        *_score_tiles(figures),
        (
            f"{sum(best) / len(best):.4f}" if best else "–",
            f"mean of the best validation {dice_name(run)} of {len(best)} fold{'s' * (len(best) != 1)}",
        ),
        (f"{hours:.2f}", f"{device}, {lost:.2f} of them lost"),
        (
            "–" if usage.efficiency is None else f"{100 * usage.efficiency:.1f}%",
            "of the time neither lost nor spent waiting for data",
        ),
    ]


def _score_tiles(figures: dict[str, Any] | None) -> list[tuple[str, str]]:
    if figures is None:
        return []
    scores, tiles = figures["scores"], []
    partial = "" if figures["complete"] else f"; partial: {figures['folds']}"
    interval = " (95%: {:.3f} to {:.3f})".format(*found) if (found := scores.get("interval")) else ""
    name = dice_by(scored_by(figures))
    if "dice" in scores:
        tiles.append((f"{scores['dice']:.4f}", f"{name} out of fold, cross-fitted{interval}{partial}"))
    elif "dice_fitted_threshold" in scores:
        words = f"{name} of one fold with the threshold that is best on its records{interval}{partial}"
        tiles.append((f"{scores['dice_fitted_threshold']:.4f}", words))
    if held_out := scores.get("held_out"):
        words = f"{name} of the ensemble on {held_out['num_records']} records held out{partial}"
        tiles.append((f"{held_out['dice']:.4f}", words))
    return tiles


def _predictions(run: Run, folder: Path, figures: dict[str, Any] | None, num_records: int) -> list[Markup]:
    """Return charts and gallery of the out-of-fold predictions, or the reason why there are none."""
    if figures is None:
        there = (folder / "ensemble.json").exists()
        why = "was made by another version of contrails" if there else "does not exist yet"
        return _none(f"The aggregation {folder.name} {why}: run `contrails aggregate {run.typed}` for this section.")
    try:
        scored = stored_out_of_fold(run, folder, figures)
    except DataError as error:
        return _none(f"No out-of-fold predictions: {error}")
    threshold, steps = float(figures["threshold"]), [Step(**step) for step in figures["steps"]]
    with bar("pictures", num_records) as advance:
        judged = judge(scored, dict.fromkeys(map(str, scored.folds), threshold), steps)
        return [
            scores_section(
                figures, tally(scored), judged, Words(scored.by, target_name(run, target_of(scored.dataset)))
            ),
            gallery_section(scored, judged, threshold, steps, num_records, advance),
        ]


def _none(why: str) -> list[Markup]:
    said = parts.text(why, "none")
    return [section("scores", "Out-of-fold predictions", said), section("gallery", "Gallery", said)]


def _recipe(run: Run) -> Markup:
    """Return recipe, data and site of the run as text, unparsed, so that older versions can be shown."""
    text = run.toml.read_text(encoding="utf-8", errors="replace")
    made = read_hint(run.provenance)
    kept = ("command", "commit", "created", "host", "user", "python", "folder")
    origin = "\n".join(f"{key}: {made[key]}" for key in kept if made.get(key))
    libraries = "\n".join(f"{name} {number}" for name, number in sorted(made.get("versions", {}).items()))
    shown = [("Recipe, data and site (run.toml)", text), ("Where it comes from", origin), ("Libraries", libraries)]
    return section("recipe", "Recipe", parts.recipe([(title, content) for title, content in shown if content]))
