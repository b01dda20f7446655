"""The HTML page of an audit, a single file with the pictures of all findings."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jinja2 import StrictUndefined, Template
from PIL import Image
from scipy import ndimage

from contrails.dataset.store import Dataset
from contrails.files import atomic_path
from contrails.inspect.audit import Finding
from contrails.inspect.colours import colours_of, labelled_frame

_MOST_SHOWN = 6
"""Largest number of records drawn per finding."""

_MARKED, _PREDICTED = (255, 0, 255), (0, 255, 255)
_PAGE = Path(__file__).with_name("audit.html")


@dataclass(frozen=True)
class _Record:
    """A record on the page: data URIs of its picture without and with outlines, and the caption."""

    plain: str
    outlined: str
    words: str


def write_page(
    path: Path,
    dataset: Dataset,
    findings: Sequence[Finding],
    predicted: Mapping[str, np.ndarray],
    cut: int,
    about: str,
) -> None:
    """Write the page; each record is drawn twice, without and with the outlines of its label and prediction."""
    shown = []
    for finding in findings:
        # records are drawn while the page is written, so that only a few pictures are in memory at a time
        draw = partial(_record, dataset, predicted=predicted, cut=cut, finding=finding)
        title, left = f"{finding.kind}: {finding.reason}", max(0, len(finding.rows) - _MOST_SHOWN)
        shown.append({"title": title, "records": map(draw, finding.rows[:_MOST_SHOWN]), "left": left})
    page = Template(_PAGE.read_text(encoding="utf-8"), autoescape=True, undefined=StrictUndefined)
    title = f"Audit of {dataset.path.name}"
    with atomic_path(path) as temporary:
        page.stream(title=title, about=about, findings=shown).dump(str(temporary), encoding="utf-8")


def _record(dataset: Dataset, row: int, predicted: Mapping[str, np.ndarray], cut: int, finding: Finding) -> _Record:
    image, part = colours_of(dataset, row, labelled_frame(dataset)), dataset.unpadded(row)
    pixels = np.broadcast_to(image if image.ndim == 3 else image[..., None], (*image.shape[:2], 3))
    plain = (255 * pixels).round().astype(np.uint8)
    outlined = plain.copy()
    if (probs := predicted.get(dataset.record_ids[row])) is not None:
        outlined[_outline((probs >= cut)[part])] = _PREDICTED
    outlined[_outline(dataset.hard(row)[part])] = _MARKED
    words = dataset.record_ids[row] + (", excluded" if row in finding.excluded else "")
    return _Record(_uri(plain), _uri(outlined), words)


def _outline(mask: np.ndarray) -> np.ndarray:
    """Return the pixels around a mask, bool (H, W), so that the outline hides none of its pixels."""
    around: np.ndarray = ndimage.binary_dilation(mask) & ~mask
    return around


def _uri(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "webp", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
