"""One HTML page with a picture for each finding of an audit; opens in any browser, from the disk."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from contrails.dataset.store import Dataset
from contrails.files import atomic_path
from contrails.inspect.audit import Finding
from contrails.inspect.colours import colours_of, labelled_frame

_MOST_SHOWN = 6
"""Records of one finding that are drawn."""

_MARKED, _PREDICTED = (255, 0, 255), (0, 255, 255)
_HEAD = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body {{font: 14px sans-serif; margin: 2em}} img {{width: 256px; image-rendering: pixelated; margin-right: 4px}}
figure {{display: inline-block; margin: 0 1.5em 1em 0}} h3 {{margin: 1.5em 0 .3em}} p {{max-width: 60em}}</style>
<h1>{title}</h1><p>{about}</p>
"""


def write_page(
    path: Path,
    dataset: Dataset,
    findings: Sequence[Finding],
    predicted: Mapping[str, np.ndarray],
    cut: int,
    about: str,
) -> None:
    """Write the page; each record is drawn twice, as it is and with outlines of its label and of what was predicted."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(_HEAD.format(title=html.escape(f"Audit of {dataset.path.name}"), about=html.escape(about)))
        for finding in findings:
            file.write(f"<h3>{html.escape(f'{finding.kind}: {finding.reason}')}</h3>\n")
            for row in finding.rows[:_MOST_SHOWN]:
                probs = predicted.get(dataset.record_ids[row])
                guess = None if probs is None else probs >= cut
                file.write(_figure(dataset, row, guess, row in finding.excluded))
            if left := len(finding.rows) - _MOST_SHOWN:
                file.write(f"<p>and {left} more</p>\n" if left > 0 else "")


def _figure(dataset: Dataset, row: int, guess: np.ndarray | None, excluded: bool) -> str:
    image, part = colours_of(dataset, row, labelled_frame(dataset)), dataset.unpadded(row)
    pixels = np.broadcast_to(image if image.ndim == 3 else image[..., None], (*image.shape[:2], 3))
    plain = (255 * pixels).round().astype(np.uint8)
    outlined = plain.copy()
    if guess is not None:
        outlined[_outline(guess[part])] = _PREDICTED
    outlined[_outline(dataset.hard(row)[part])] = _MARKED
    said = dataset.record_ids[row] + (", excluded" if excluded else "")
    return f"<figure>{_img(plain)}{_img(outlined)}<figcaption>{html.escape(said)}</figcaption></figure>\n"


def _outline(mask: np.ndarray) -> np.ndarray:
    """Return the pixels around a mask, bool (H, W), so that none of it is hidden."""
    around: np.ndarray = ndimage.binary_dilation(mask) & ~mask
    return around


def _img(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "webp", quality=85)
    return f'<img alt="" src="data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
