"""A picture of a few records of a dataset file, as a visual check of packing.

Each record is drawn twice at the labelled frame (in ash false colour if the file has the bands): without an outline,
which would hide a contrail of a few pixels, and with the outline of the pixels that most annotators marked.
"""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from contrails.dataset.store import IGNORE, Dataset
from contrails.files import atomic_path
from contrails.inspect.colours import colours_of, colours_said, labelled_frame

_MOST_SAMPLES = 12
_PANEL_IN = 3.2
_OUTLINE = "magenta"


def endings() -> tuple[str, ...]:
    """Return the endings of the picture formats that matplotlib can write, without the dot."""
    return tuple(sorted(set(FigureCanvasBase.get_supported_filetypes()) - {"pgf"}))  # pgf needs LaTeX


def plot_samples(dataset: Dataset, path: Path) -> int:
    """Write a picture of up to 12 records, the positive ones first; return how many it shows."""
    positive = dataset.positive_pixels(range(dataset.num_records))
    rows = sample_rows(positive)
    labelled = bool(dataset.annotators.any())
    num_views = 2 if labelled else 1
    num_columns = columns(len(rows), 3 if labelled else 4)
    num_lines = -(-len(rows) // num_columns)
    size = (_PANEL_IN * num_views * num_columns, (_PANEL_IN + 0.4) * num_lines + 0.7)
    figure = Figure(figsize=size, layout="compressed")
    frame = labelled_frame(dataset)
    figure.suptitle(_title(dataset, len(rows), frame, labelled), fontsize=10)
    panels = figure.subplots(num_lines, num_columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for panel, row in zip(panels, rows, strict=False):
        _draw(panel, dataset, int(row), frame, num_views)
        said = f"{positive[row]} positive pixels" if dataset.annotators[row] else "unlabelled"
        panel.set_title(f"{dataset.record_ids[row]}\n{said}", fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:].lower(), dpi=150, bbox_inches="tight")
    return len(rows)


def sample_rows(positive: np.ndarray) -> np.ndarray:
    """Return up to 12 rows spread over the file, those with positive pixels first; `positive` is int64 (N,)."""
    with_pixels = _spread(np.flatnonzero(positive), _MOST_SAMPLES)
    without = _spread(np.flatnonzero(positive == 0), _MOST_SAMPLES - len(with_pixels))
    return np.concatenate([with_pixels, without])


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    if len(rows) <= count:
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(np.int64)]


def columns(count: int, most: int) -> int:
    """Return a number of columns, at most `most`, that leaves the fewest empty panels for `count` records."""
    return min(range(min(count, most), 1, -1), key=lambda number: -count % number, default=1)


def _title(dataset: Dataset, num_samples: int, frame: int, labelled: bool) -> str:
    colours = colours_said(dataset)
    when = f"frame {dataset.frames[frame]}"
    if dataset.frames[frame] != dataset.label_frame:
        when += f" (labelled: frame {dataset.label_frame})"
    order = ", positive ones first" if labelled else ""
    share = f"{num_samples} of {dataset.num_records} records of '{dataset.split}'{order}"
    legend = f"\n{_OUTLINE} outline on the right: marked by more than half of the annotators"
    return f"{dataset.path.name}: {share}; {colours}, {when}{legend if labelled else ''}"


def _draw(panel: Axes, dataset: Dataset, row: int, frame: int, num_views: int) -> None:
    """Draw a record without an outline, and with two views again to the right, with the outline of its label."""
    image = colours_of(dataset, row, frame)
    height, width = image.shape[:2]
    lefts = [view * (width + width // 50) for view in range(num_views)]
    for left in lefts:
        extent = (left - 0.5, left + width - 0.5, height - 0.5, -0.5)
        panel.imshow(image, cmap="gray", vmin=0, vmax=1, extent=extent)
    panel.set(xlim=(-0.5, lefts[-1] + width - 0.5), ylim=(height - 0.5, -0.5))
    part = dataset.unpadded(row)
    mask, ignored = dataset.hard(row)[part], dataset.votes[row][part] == IGNORE
    if mask.any() and not (mask | ignored).all():
        down, right = dataset.label_offset_px
        # the outline is shifted back by the offset of the labels, onto the image pixels that were marked
        x, y = np.arange(width) + lefts[-1] - right, np.arange(height) - down
        panel.contour(x, y, np.ma.array(mask, float, mask=ignored), [0.5], colors=_OUTLINE, linewidths=0.7)
