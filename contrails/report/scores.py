"""Charts of the out-of-fold predictions: Dice by threshold, precision and recall, calibration, confusion, decisions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from contrails.aggregate.decide.calibrate import Calibration, reliability
from contrails.aggregate.decide.judged import Judged
from contrails.aggregate.members.scored import By, Tally
from contrails.metrics import NUM_BINS, Histogram, average_precision, roc_auc
from contrails.report.html import Cell, count, number, parts, section, table
from contrails.report.naming import confusion_cut, dice_by
from contrails.report.svg import Axis, Line, Point, chart

_POINTS = 200


@dataclass(frozen=True)
class Words:
    """The words of the charts: what the scores count, and the class of the masks, such as contrail."""

    by: By
    target: str

    @property
    def dice(self) -> str:
        return dice_by(self.by)

    @property
    def share(self) -> str:
        what = "pixels that are" if self.by == "pixel" else "records with"
        return f"share of {what} {self.target}"


def scores_section(figures: dict[str, Any], counted: Tally, judged: Judged, words: Words) -> Markup:
    """Return charts of the out-of-fold predictions, and the table of decisions."""
    threshold = float(figures["threshold"])
    pooled = counted.pooled
    charts = [
        parts.figure(f"{words.dice} by threshold", *_thresholds(counted, threshold, words)),
        parts.figure("Precision and recall", *_precision_recall(counted, words)),
        parts.figure("Reliability", *_reliability(pooled, words)),
        parts.figure("Confusion", *_confusion(judged, figures, words)),
    ]
    return section(
        "scores",
        "Out-of-fold predictions",
        parts.text(f"Of: {figures['scores']['records']}.", "quiet"),
        parts.legend([(name, style) for name, style, _ in _series(counted)]),
        parts.charts(charts, " wide"),
        _decisions(figures["scores"].get("decisions", [])),
    )


def _series(counted: Tally) -> Iterator[tuple[str, str, Histogram]]:
    for index, (part, histogram) in enumerate(sorted(counted.by_fold.items(), key=lambda item: int(item[0]))):
        yield f"fold {part}", f"c{index % 8}", histogram
    yield "all folds", "all", counted.pooled


def _thresholds(counted: Tally, threshold: float, words: Words) -> tuple[Markup, str]:
    places = np.unique(np.linspace(0, 1, _POINTS + 1).clip(1 / NUM_BINS) * (NUM_BINS - 1)).round().astype(int)
    lines = [
        Line(name, _points(places / (NUM_BINS - 1), histogram.dice_curve()[places]), style)
        for name, style, histogram in _series(counted)
    ]
    top = max(value for line in lines for point in line.points if point for value in point[1:])
    lines.append(Line("threshold", [(threshold, 0.0), (threshold, top)], "mark"))
    best, at = counted.pooled.best()
    said = f"Best over all folds: {words.dice} {best:.4f} at {at:.4f}. The ensemble cuts at {threshold:.4f} (dashed)."
    axes = Axis("threshold", (0, 1)), Axis(f"global {words.dice}")
    return chart(f"Global {words.dice} at every threshold", lines, *axes), said


def _precision_recall(counted: Tally, words: Words) -> tuple[Markup, str]:
    lines = []
    for name, style, histogram in _series(counted):
        hits = histogram.positive[::-1].cumsum().astype(np.float64)
        found = hits + histogram.negative[::-1].cumsum()
        recall = hits / max(hits[-1], 1.0)
        precision = np.divide(hits, found, out=np.ones(NUM_BINS), where=found > 0)
        places = np.unique(np.searchsorted(recall, np.linspace(0.005, 1, _POINTS)).clip(max=NUM_BINS - 1))
        lines.append(Line(name, _points(recall[places], precision[places]), style))
    area = average_precision(counted.pooled)
    said = f"Area under the curve of all folds (average precision): {area:.4f}."
    if words.by == "record":
        said = f"{said} Area under the ROC curve (AUC), by record: {roc_auc(counted.pooled):.4f}."
    axes = Axis("recall", (0, 1)), Axis("precision", (0, 1))
    return chart("Precision against recall over all thresholds", lines, *axes), said


def _reliability(pooled: Histogram, words: Words) -> tuple[Markup, str]:
    found = reliability(pooled, Calibration())
    points = [(expected / pixels, actual / pixels) for expected, actual, pixels in found["bins"]]
    lines = [Line("perfect", [(0.0, 0.0), (1.0, 1.0)], "mark"), Line("all folds", points, "all", markers=True)]
    said = (
        f"Expected calibration error {found['calibration_error']:.5f}, cross entropy {found['cross_entropy']:.5f} nats."
    )
    axes = Axis("mean predicted probability", (0, 1)), Axis(words.share, (0, 1))
    return chart("Predicted probability against observed fraction", lines, *axes), said


def _confusion(judged: Judged, figures: dict[str, Any], words: Words) -> tuple[Markup, str]:
    """Return the confusion matrix: of pixels at the ensemble's threshold; of records as the aggregation computed it."""
    hits, false, missed = (int(part.sum()) for part in (judged.hits, judged.false, judged.missed))
    pixels = int(judged.pixels.sum())
    rest = pixels - hits - false - missed
    how = f"At {figures['threshold']:.4f}, the ensemble's threshold, post-processed"
    if words.by == "record":
        hits, false, missed, rest = (figures["scores"]["confusion"][key] for key in ("tp", "fp", "fn", "tn"))
        pixels, how = hits + false + missed + rest, f"By record, {confusion_cut(figures['scores'])}"

    def cell(value: int) -> tuple[str, str]:
        return count(value), f"{100 * value / max(pixels, 1):.3f}%"

    cells = (cell(hits), cell(missed)), (cell(false), cell(rest))
    content: Markup = parts.confusion(words.target, f"{words.by}s", cells)
    precision, recall = hits / max(hits + false, 1), hits / max(hits + missed, 1)
    overlap = hits / max(hits + false + missed, 1)
    said = f"{how}: precision {precision:.4f}, recall {recall:.4f}, IoU {overlap:.4f}."
    return content, said


def _decisions(rows: list[dict[str, Any]]) -> Markup:
    if not rows:
        return Markup()
    kept = {True: "yes", False: "no", None: ""}
    cells = [
        (
            Cell(row["step"].replace("_", " ")),
            number(row["value"], 2),
            number(row["dice"]),
            Cell("" if row["step"] == "threshold alone" else f"{row['gain']:+.4f}", row["gain"]),
            number(row["noise"] if row["step"] != "threshold alone" else None),
            kept[row["kept"]],
        )
        for row in rows
    ]
    headings = ("step", "value", "Dice", "gain", "noise", "kept")
    made: Markup = parts.decisions(table("decisions of the aggregator", headings, cells))
    return made


def _points(xs: np.ndarray, ys: np.ndarray) -> list[Point | None]:
    return list(zip(xs.tolist(), ys.tolist(), strict=True))
