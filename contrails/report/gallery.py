"""The gallery: the most informative records, with their pictures as data URIs."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from PIL import Image

from contrails.aggregate.decide.judged import Judged, choose
from contrails.aggregate.decide.postprocess import Step, apply
from contrails.aggregate.members.scored import Scored
from contrails.inspect.colours import colours_of, labelled_frame
from contrails.metrics import NUM_BINS
from contrails.report.html import render, section

_MOST_PIXELS = 512
"""Largest side of a picture in pixels; larger records are scaled down."""
_HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)
_HIT, _FALSE, _MISSED = (255, 255, 255), (230, 120, 0), (60, 160, 255)
"""White, orange and blue, which people with colour blindness can distinguish."""


@dataclass(frozen=True)
class _Record:
    """A record of the gallery, in the form that its template needs."""

    record_id: str
    kind: str
    label: str
    words: str
    sorted_by: dict[str, str | int]
    pictures: dict[str, str]
    """Data URIs by name of the picture."""


def gallery_section(
    scored: Scored,
    judged: Judged,
    threshold: float,
    steps: Sequence[Step],
    count: int,
    advance: Callable[[int], None],
) -> Markup:
    """Draw up to `count` records and return the section of the page that shows them; `advance` counts them."""
    records = []
    for index, kind in choose(judged, count):
        record_id = scored.dataset.record_ids[int(scored.rows[index])]
        label, words, sorted_by = _about(judged, index)
        pictures = _pictures(scored, index, threshold, steps)
        records.append(_Record(record_id, kind, label, words, sorted_by, pictures))
        advance(1)
    of_pixels = judged.answers is None
    shown = render(
        "gallery.html",
        explained=_EXPLAINED if of_pixels else _EXPLAINED_ANSWERS,
        orders=_ORDERS if of_pixels else _ORDERS_OF_ANSWERS,
        kinds=judged.kinds,
        records=records,
        panes=_PANES,
    )
    return section("gallery", "Gallery", shown)


def _about(judged: Judged, index: int) -> tuple[str, str, dict[str, str | int]]:
    """Return a record's label, the text below its pictures, and the values to sort it by."""
    hits, false, missed = (int(each[index]) for each in (judged.hits, judged.false, judged.missed))
    if judged.answers is None:
        dice = judged.dice[index]
        score = "" if np.isnan(dice) else f"{dice:.4f}"
        words = f"Dice {score or '–'} · found {hits} · false {false} · missed {missed} px"
        return f"Dice {score or 'undefined'}", words, {"dice": score, "hits": hits, "false": false, "missed": missed}
    answer, truth = float(judged.answers[index]), hits + missed
    known = judged.pixels[index] > 0
    error = f"{abs(truth - answer):.4f}" if known else ""
    words = f"probability {answer:.4f} · truth {truth if known else 'unknown'}"
    words += " · false" if false else " · missed" if missed else " · found" if hits else ""
    return f"probability {answer:.4f}", words, {"probability": f"{answer:.4f}", "error": error}


_PANES = ("image", "label", "probability", "errors")
_ORDERS = {
    "kind up": "kind",
    "dice up": "Dice, worst first",
    "dice down": "Dice, best first",
    "missed down": "missed pixels",
    "false down": "false pixels",
    "hits down": "found pixels",
    "id up": "record",
}
_ORDERS_OF_ANSWERS = {
    "kind up": "kind",
    "error down": "farthest from the truth first",
    "error up": "nearest to the truth first",
    "probability down": "probability, highest first",
    "probability up": "probability, lowest first",
    "id up": "record",
}
_EXPLAINED_ANSWERS = (
    "Out of fold: each record is shown with the prediction of the member that was not trained on it: its probability, "
    "and the truth, 1 if the record has a positive pixel and 0 if it has none. Found, false and missed refer to the "
    "threshold of the ensemble. From left to right and top to bottom: false colour image, fraction of annotators that "
    "marked a pixel, probability, and error, the same over all of a record. Select a record to enlarge it."
)
_EXPLAINED = (
    "Out of fold: each record is shown with the prediction of the member that was not trained on it, cut at the "
    "threshold of the ensemble. From left to right and top to bottom: false colour image, fraction of annotators that "
    "marked a pixel, probability, errors. Select a record to enlarge it."
)


def _pictures(scored: Scored, index: int, threshold: float, steps: Sequence[Step]) -> dict[str, str]:
    """Return the pictures of a record as data URIs, by name."""
    row, dataset, probabilities = int(scored.rows[index]), scored.dataset, scored.images(index)
    part = dataset.unpadded(row)
    image = colours_of(dataset, row, labelled_frame(dataset))
    image = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    hard, valid = scored.truth(index)
    counted = np.ones_like(hard) if valid is None else valid
    # a classifier has one truth per record, which applies to all pixels
    hard, counted = (np.broadcast_to(each, probabilities.shape) for each in (hard, counted))
    mask = apply(probabilities, threshold, steps) & counted
    marked = np.where(counted, dataset.votes[row] / max(int(dataset.annotators[row]), 1), 0.0)
    drawn = (
        _as_bytes(image),
        _heat(marked[part]),
        _heat(probabilities[part] / (NUM_BINS - 1)),
        _errors(image, mask[part], hard[part]),
    )
    return dict(zip(_PANES, map(_encoded, drawn), strict=True))


def _errors(image: np.ndarray, mask: np.ndarray, hard: np.ndarray) -> np.ndarray:
    """Return true positives, false positives and false negatives over a faint image, uint8 (H, W, 3)."""
    grey = image.mean(axis=2, keepdims=True)
    picture = _as_bytes(np.repeat(0.12 + 0.3 * grey, 3, axis=2))
    for where, colour in ((mask & hard, _HIT), (mask & ~hard, _FALSE), (hard & ~mask, _MISSED)):
        picture[where] = colour
    return picture


def _heat(values: np.ndarray) -> np.ndarray:
    """Return values from 0 to 1 as colours from black to yellow, uint8 (H, W, 3)."""
    places = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(values, places, channel) for channel in _HEAT.T]
    return np.stack(channels, axis=2).round().astype(np.uint8)


def _as_bytes(image: np.ndarray) -> np.ndarray:
    finite: np.ndarray = np.nan_to_num(image, nan=0.0)
    return (finite.clip(0, 1) * 255).round().astype(np.uint8)


def _encoded(pixels: np.ndarray) -> str:
    """Return a picture as a data URI."""
    picture = Image.fromarray(pixels)
    if max(picture.size) > _MOST_PIXELS:
        picture.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=82, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
