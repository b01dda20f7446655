"""What the product makes of a file, beside what the file says: the same values, or an error that says what to do."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from odd_files import MAKERS, Draw, Truth, one_of

from contrails.dataset.store import IGNORE
from contrails.errors import DataError
from contrails.sources.masks import USUAL, read_classes, table_of
from contrails.sources.radiometry import packed_integers
from contrails.sources.rasters import describe, read
from contrails.sources.spans import choose_values

LABELS: tuple[tuple[int, ...], ...] = ((0, 1), (0, 255), (0, 1, 255), (0, 2), (1,), (0,))


def judge(folder: Path, draw: Draw) -> str:
    """Write a file that is drawn and read it; return what happened, as maker, role and outcome.

    Raises:
        AssertionError: other values than the file has, or an error without a next step, or for no reason.
    """
    for old in folder.iterdir():
        old.unlink()
    maker, labels = one_of(draw, MAKERS), one_of(draw, LABELS) if draw(st.booleans()) else ()
    truth = maker(folder / "file", draw, labels)
    (path,) = (each for each in folder.iterdir() if not each.name.endswith(".aux.xml"))
    is_cut = draw(st.booleans())
    if is_cut:
        content = path.read_bytes()
        anywhere = np.random.default_rng(draw(st.integers(0, 999))).integers(len(content))
        missing = draw(st.integers(1, 40)) if draw(st.booleans()) else int(anywhere)
        path.write_bytes(content[: max(0, len(content) - missing)])
    is_mask = bool(labels) and len(truth.counts) == 1
    expected = _lost_class(truth) if is_mask and not truth.refused else truth.refused
    try:
        (_judge_mask if is_mask else _judge_image)(path, truth, draw)
    except DataError as error:
        message = str(error)
        assert str(path) in message, message
        assert ";" in message, message
        if not is_cut:
            assert expected, f"refused for no reason: {message}"
            assert expected in message, f"expected '{expected}' in: {message}"
        return f"{maker.__name__}: refused{', cut' if is_cut else ''}"
    assert not expected or is_cut, f"not refused, though {expected}"
    return f"{maker.__name__}: the same{', cut' if is_cut else ''}"


def _judge_image(path: Path, truth: Truth, draw: Draw) -> None:
    raster = describe(path)
    height, width = truth.counts.shape[1:]
    assert (raster.height, raster.width, len(raster.band_names)) == (height, width, len(truth.counts))
    choice = choose_values([raster], [raster], [], None)
    row, column = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    window = (row, column, draw(st.integers(1, height - row)), draw(st.integers(1, width - column)))
    for top, left, rows, columns in (window, (0, 0, height, width), window):
        part = np.s_[..., top : top + rows, left : left + columns]
        stored, where = read(path, (top, left, rows, columns))
        assert stored.dtype == truth.counts.dtype, "another type"
        _require_near(stored, truth.counts[part], truth.apart)
        counts, valid = packed_integers(stored, where, raster, choice.values)
        exact, known = _values(truth)
        assert np.array_equal(valid, known[part]), "other pixels are data"
        found = counts * choice.values.scale_factor + choice.values.add_offset
        allowed = choice.values.scale_factor * (truth.apart if choice.span is None else 0.5)
        beyond = (-np.inf, np.inf) if choice.span is None else choice.span
        wanted = exact[part].clip(*beyond)
        apart = np.abs(found - wanted)[:, valid]
        inside = (exact[part] == wanted)[:, valid]
        assert (apart[inside] <= allowed + 1e-9 * np.abs(wanted[:, valid][inside])).all(), "other values"
        assert (apart[~inside] <= 1.01 * choice.values.scale_factor).all(), "other values beyond the range"


def _require_near(found: np.ndarray, wanted: np.ndarray, apart: int) -> None:
    if apart:
        assert np.abs(found.astype(int) - wanted.astype(int)).max() <= apart, "other counts"
    else:
        assert np.array_equal(found, wanted, equal_nan=found.dtype.kind == "f"), "other counts"


def _values(truth: Truth) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of an image, float64 (C, H, W), and where they are data, bool (H, W)."""
    counts = truth.counts.astype(np.float64)
    signed = truth.counts.dtype.kind == "i"
    top = (1 << (truth.bits - signed)) - 1 if truth.bits else 1
    both = -1 if signed else top
    shown = both - counts if truth.zero_is_white else counts
    is_fraction = truth.bits and (truth.scale, truth.offset) in ((1, 0), (-1, both))
    values = (truth.scale * shown + truth.offset) / (top if is_fraction else 1)
    valid = np.asarray(np.isfinite(values).all(axis=0))
    if truth.nodata is not None:
        missing = np.isnan(counts) if np.isnan(truth.nodata) else counts == truth.counts.dtype.type(truth.nodata)
        valid &= ~missing.all(axis=0)
    return values, valid if truth.inside is None else valid & truth.inside


def _judge_mask(path: Path, truth: Truth, draw: Draw) -> None:
    mask = describe(path)
    table = table_of([mask], ())
    found = read_classes(mask, (0, 0, mask.height, mask.width), USUAL)
    (counts,), inside = truth.counts, _inside(truth)
    wanted = np.where(counts > 0, np.uint8(1), np.uint8(0))
    wanted[~inside | (False if truth.nodata is None else (counts == truth.nodata) & ~np.isin(counts, (0, 1, 255)))] = (
        IGNORE
    )
    assert np.array_equal(found, wanted), "other classes"
    assert sum(pixels for _, _, pixels in table) == found.size, "a table of other pixels"
    for meaning in (0, 1, IGNORE):
        assert sum(pixels for _, means, pixels in table if means == meaning) == (found == meaning).sum()


def _inside(truth: Truth) -> np.ndarray:
    inside: np.ndarray = np.ones(truth.counts.shape[1:], bool) if truth.inside is None else truth.inside
    return inside


def _lost_class(truth: Truth) -> str:
    """Return why a mask must be refused: a class would be lost, or a value means nothing."""
    counts, inside = truth.counts[0], _inside(truth)
    there, lost = set(np.unique(counts[inside]).tolist()), set(np.unique(counts[~inside]).tolist())
    if there - {0, 1, 255, truth.nodata}:
        return "expected the values 0, 1, 255, found"
    if truth.nodata in there & {0, 1, 255}:
        return "expected a nodata value that is not the value of a class"
    if (lost & {0, 1, 255}) - there:
        return "masks all of them out"
    if truth.zero_is_white:
        return "found that zero is white"
    return "expected 0 and 1, or 0 and 255, found 0, 1 and 255" if {1, 255} <= there else ""


def tally(outcomes: Sequence[str]) -> dict[str, int]:
    """Return how often each outcome was there."""
    return {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}
