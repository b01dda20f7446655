"""How good the predictions are: charts of every threshold, calibration, confusion, and the aggregator's decisions."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from contrails.aggregate.calibrate import Calibration, reliability
from contrails.aggregate.judged import Judged
from contrails.aggregate.scored import Tally
from contrails.metrics import NUM_BINS, Histogram, average_precision
from contrails.report.html import Cell, count, figure, legend, number, section, table
from contrails.report.svg import Axis, Line, Point, chart

_POINTS = 200


def scores_section(figures: dict[str, Any], counted: Tally, judged: Judged) -> str:
    """Return charts of the out-of-fold predictions, and the table of decisions."""
    threshold = float(figures["threshold"])
    pooled = counted.pooled
    charts = [
        figure("Dice by threshold", *_thresholds(counted, threshold)),
        figure("Precision and recall", *_precision_recall(counted)),
        figure("Reliability", *_reliability(pooled)),
        figure("Confusion", *_confusion(judged, threshold)),
    ]
    return section(
        "scores",
        "Out-of-fold predictions",
        f'<p class="quiet">Of: {figures["scores"]["records"]}.</p>',
        legend([(name, style) for name, style, _ in _series(counted)]),
        f'<div class="charts wide">{"".join(charts)}</div>',
        _decisions(figures["scores"].get("decisions", [])),
    )


def _series(counted: Tally) -> Iterator[tuple[str, str, Histogram]]:
    for index, (part, histogram) in enumerate(sorted(counted.by_part.items(), key=lambda item: int(item[0]))):
        yield f"fold {part}", f"c{index % 8}", histogram
    yield "all folds", "all", counted.pooled


def _thresholds(counted: Tally, threshold: float) -> tuple[str, str]:
    places = np.unique(np.linspace(0, 1, _POINTS + 1).clip(1 / NUM_BINS) * (NUM_BINS - 1)).round().astype(int)
    lines = [
        Line(name, _points(places / (NUM_BINS - 1), histogram.dice_curve()[places]), style)
        for name, style, histogram in _series(counted)
    ]
    top = max(value for line in lines for point in line.points if point for value in point[1:])
    lines.append(Line("threshold", [(threshold, 0.0), (threshold, top)], "mark"))
    best, at = counted.pooled.best()
    words = f"Best over all folds: Dice {best:.4f} at {at:.4f}. The ensemble cuts at {threshold:.4f} (dashed)."
    return chart("Global Dice at every threshold", lines, Axis("threshold", (0, 1)), Axis("global Dice")), words


def _precision_recall(counted: Tally) -> tuple[str, str]:
    lines = []
    for name, style, histogram in _series(counted):
        hits = histogram.positive[::-1].cumsum().astype(np.float64)
        found = hits + histogram.negative[::-1].cumsum()
        recall = hits / max(hits[-1], 1.0)
        precision = np.divide(hits, found, out=np.ones(NUM_BINS), where=found > 0)
        places = np.unique(np.searchsorted(recall, np.linspace(0.005, 1, _POINTS)).clip(max=NUM_BINS - 1))
        lines.append(Line(name, _points(recall[places], precision[places]), style))
    area = average_precision(counted.pooled)
    words = f"Area under the curve of all folds (average precision): {area:.4f}."
    axes = Axis("recall", (0, 1)), Axis("precision", (0, 1))
    return chart("Precision against recall over all thresholds", lines, *axes), words


def _reliability(pooled: Histogram) -> tuple[str, str]:
    found = reliability(pooled, Calibration())
    points = [(expected / pixels, actual / pixels) for expected, actual, pixels in found["bins"]]
    lines = [Line("perfect", [(0.0, 0.0), (1.0, 1.0)], "mark"), Line("all folds", points, "all", markers=True)]
    words = (
        f"Expected calibration error {found['calibration_error']:.5f}, cross entropy {found['cross_entropy']:.5f} nats."
    )
    axes = Axis("mean predicted probability", (0, 1)), Axis("share of pixels that are contrail", (0, 1))
    return chart("Predicted probability against what was there", lines, *axes), words


def _confusion(judged: Judged, threshold: float) -> tuple[str, str]:
    hits, false, missed = (int(part.sum()) for part in (judged.hits, judged.false, judged.missed))
    pixels = int(judged.pixels.sum())
    rest = pixels - hits - false - missed

    def cell(value: int) -> str:
        return f"<td>{count(value)}<small>{100 * value / max(pixels, 1):.3f}%</small></td>"

    content = (
        '<table class="confusion"><thead><tr><th scope="col">pixels</th><th scope="col">predicted</th>'
        '<th scope="col">not predicted</th></tr></thead><tbody>'
        f'<tr><th scope="row" class="left">contrail</th>{cell(hits)}{cell(missed)}</tr>'
        f'<tr><th scope="row" class="left">none</th>{cell(false)}{cell(rest)}</tr></tbody></table>'
    )
    precision, recall = hits / max(hits + false, 1), hits / max(hits + missed, 1)
    overlap = hits / max(hits + false + missed, 1)
    words = f"At {threshold:.4f}, post-processed: precision {precision:.4f}, recall {recall:.4f}, IoU {overlap:.4f}."
    return content, words


def _decisions(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
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
    heading = (
        '<h3 style="margin-top:1.25rem">Decisions of the aggregator</h3><p class="quiet">Each step is judged out of '
        "fold, with its strength fitted on the other folds; it is kept if it gains more than its noise.</p>"
    )
    return heading + table("decisions of the aggregator", ("step", "value", "Dice", "gain", "noise", "kept"), cells)


def _points(xs: np.ndarray, ys: np.ndarray) -> list[Point | None]:
    return list(zip(xs.tolist(), ys.tolist(), strict=True))
