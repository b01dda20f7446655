"""Masks of scenes: the meaning of each value, and how many pixels of all masks have it.

The options give the meanings; pixels that a file declares as nodata or masks out are ignored. So that no class is lost
silently, a mask is refused if this would ignore all pixels of a class, or if a value has no meaning. Masks saved as
colours have three channels, which must be equal.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from contrails.dataset.store import IGNORE
from contrails.errors import DataError
from contrails.progress import bar
from contrails.sources.rasters import Raster, Window, read

Meanings = tuple[tuple[int, int, int], ...]
"""Ranges of values (first, last, meaning), with the meaning 0, 1 or IGNORE."""

USUAL: Meanings = ((0, 0, 0), (1, 1, 1), (255, 255, 1))
"""The default meanings."""

_MEANS = {"0": 0, "1": 1, "ignore": IGNORE}
_PART = re.compile("(-?[0-9]+)(?:-(-?[0-9]+))?=(0|1|ignore)")
_CHANNELS = (1, 3)

_NO_MEANING, _NODATA = 65_535, 65_534
"""Codes of pixels without a meaning and of nodata, uint16; the code of any other pixel is the index of its meaning."""

_STRIP_PIXELS = 1 << 23
_SHOWN = 10


def said(meanings: Meanings) -> str:
    """Return meanings in the format of the option, such as 0=0,1=1,255=ignore.

    >>> said(((0, 127, 0), (128, 128, IGNORE)))
    '0-127=0,128=ignore'
    """
    return ",".join(f"{_name(one)}={'ignore' if one[2] == IGNORE else one[2]}" for one in meanings)


def parse(text: str) -> Meanings:
    """Parse meanings in the format of `said`.

    Raises:
        DataError: the format is wrong, or a value has two meanings.

    >>> parse("0-127=0,128=ignore")
    ((0, 127, 0), (128, 128, 255))
    """
    found: list[tuple[int, int, int]] = []
    for part in text.split(","):
        match = _PART.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if match is None or first > last or any(low <= last and first <= high for low, high, _ in found):
            raise DataError(
                f"'{part}': expected each value once with 0, 1 or ignore, such as 0=0,1=1,255=ignore, or ranges of "
                "values, such as 0-127=0,128-255=1"
            )
        found.append((first, last, _MEANS[match[3]]))
    return tuple(found)


def require_channels(mask: Raster) -> None:
    """Check the number of channels of a mask.

    Raises:
        DataError: it is not one or three.
    """
    if len(mask.band_names) not in _CHANNELS:
        found = len(mask.band_names)
        raise DataError(
            f"{mask.path}: expected one band, or three equal ones, found {found}; keep the band with the classes"
        )


def read_classes(mask: Raster, window: Window, meanings: Meanings) -> np.ndarray:
    """Return 0, 1 or IGNORE for each pixel of a window of a mask, uint8 (height, width).

    Raises:
        DataError: the file is damaged, or a value has no meaning.
    """
    codes, inside = _read(mask, window, meanings)
    lookup = np.full(_NO_MEANING + 1, IGNORE, np.uint8)
    lookup[: len(meanings)] = [means for _, _, means in meanings]
    return np.where(inside, lookup[codes], np.uint8(IGNORE))


def table_of(masks: Sequence[Raster], given: Meanings) -> list[tuple[str, int, int]]:
    """Read all pixels of all masks; return rows (values, meaning, number of pixels).

    Args:
        masks: at least one mask.
        given: meanings from the options; empty for the default ones.

    Raises:
        DataError: a file is damaged, a value has no meaning, or a class would be lost.
    """
    meanings, total = given or USUAL, Counter[tuple[int, bool]]()
    first_with: dict[str, Raster] = {}
    with bar("masks", len(masks)) as advance:
        for mask in masks:
            found = _count(mask, meanings)
            _require_no_loss(mask, found, given)
            total += found
            for code, inside in found:
                if inside and code < len(meanings):
                    first_with.setdefault(_name(meanings[code]), mask)
            advance(1)
    if not given:
        _require_clear(masks, first_with)
    if total[_NODATA, True]:
        _require_ranges(masks, first_with, given)
    rows = [(_name(meanings[code]), meanings[code][2], total[code, True]) for code in range(len(meanings))]
    rows += [("nodata", IGNORE, total[_NODATA, True])]
    rows += [
        ("outside of a mask band or alpha", IGNORE, sum(count for (_, inside), count in total.items() if not inside))
    ]
    return [row for row in rows if row[2]]


def _count(mask: Raster, meanings: Meanings) -> Counter[tuple[int, bool]]:
    """Count the pixels of a mask by their code and by whether its mask band or alpha declares them valid."""
    found = Counter[tuple[int, bool]]()
    for window in _strips(mask):
        codes, inside = _read(mask, window, meanings)
        for where in (True, False):
            counts = np.bincount(codes[inside == where], minlength=1)
            found.update({(int(code), where): int(counts[code]) for code in np.flatnonzero(counts)})
    return found


def _read(mask: Raster, window: Window, meanings: Meanings) -> tuple[np.ndarray, np.ndarray]:
    """Return the code of each pixel, uint16 (height, width), and which pixels the mask band or alpha declares valid."""
    channels, valid = read(mask.path, window)
    values = channels[0]
    if (unequal := (channels[1:] != values).any(axis=0)).any():
        row, column = np.argwhere(unequal)[0]
        colour = ", ".join(map(str, channels[:, row, column]))
        raise DataError(
            f"{mask.path}: expected one channel, or three that are equal, found {colour} at row {window[0] + row}, "
            f"column {window[1] + column}; write a mask with one integer per class"
        )
    codes = _codes(values, mask.nodata, meanings)
    inside = valid if mask.mask else np.ones(values.shape, bool)
    if (strange := inside & (codes == _NO_MEANING)).any():
        found = np.unique(values[strange])
        shown = ", ".join(f"{value:.6g}" for value in found[:_SHOWN])
        raise DataError(
            f"{mask.path}: expected the values {', '.join(map(_name, meanings))}, found {shown}"
            f"{', ...' if len(found) > _SHOWN else ''} ({mask.dtype}); {_next_step(found, meanings, codes)}"
        )
    return codes, inside


def _codes(values: np.ndarray, nodata: float | None, meanings: Meanings) -> np.ndarray:
    """Return the code of each value; nodata takes precedence over a range, and a single value over both."""
    codes = np.full(values.shape, _NO_MEANING, np.uint16)
    values = values if values.dtype.kind in "iu" else values.astype(np.float64)
    limits = np.iinfo(values.dtype) if values.dtype.kind in "iu" else np.finfo(values.dtype)
    of_type = [(max(first, int(limits.min)), min(last, int(limits.max))) for first, last, _ in meanings]
    is_range = [first < last for first, last, _ in meanings]
    for code, (first, last) in enumerate(of_type):
        if is_range[code] and first <= last:
            codes[(values >= first) & (values <= last)] = code
    if nodata is not None:
        codes[np.isnan(values) if np.isnan(nodata) else values == nodata] = _NODATA
    for code, (first, last) in enumerate(of_type):
        if not is_range[code] and first <= last:
            codes[values == first] = code
    return codes


def _next_step(found: np.ndarray, meanings: Meanings, codes: np.ndarray) -> str:
    """Return the advice for values without a meaning; `codes` are the codes of all pixels."""
    is_class = not any(means == 1 and (codes == code).any() for code, (_, _, means) in enumerate(meanings))
    if is_class and len(found) == 1 and np.isfinite(found[0]) and found[0] == np.rint(found[0]):
        value, others = f"{found[0]:.0f}", said(meanings)
        return (
            f"give its meaning: --mask-values 0=0,{value}=1 if it is the class, --mask-values {others},{value}=ignore "
            "if it is unknown"
        )
    if np.isfinite(found).all() and (found == np.rint(found)).all() and len(found) <= _SHOWN:
        more = ",".join(f"{value:g}=ignore" for value in found)
        return f"give their meanings, such as --mask-values {said(meanings)},{more}"
    if np.isnan(found).all():
        return "if they are nodata, declare them in the file: `gdal_edit.py -a_nodata nan FILE`"
    return (
        "a mask holds one integer per class: make it again with nearest neighbours (`gdalwarp -r near`), or threshold "
        "it"
    )


def _require_no_loss(mask: Raster, found: Counter[tuple[int, bool]], given: Meanings) -> None:
    """Check that no class is lost because the file declares its pixels as nodata."""
    meanings = given or USUAL
    inside = [one for code, one in enumerate(meanings) if found[code, True]]
    outside = [one for code, one in enumerate(meanings) if found[code, False] and one[2] != IGNORE]
    nodata = [one for one in inside if one[0] == one[1] == mask.nodata and one[2] != IGNORE]
    if nodata and not given:
        left_out = tuple((*one[:2], IGNORE) if one in nodata else one for one in inside)
        raise DataError(
            f"{mask.path}: expected a nodata value that is not the value of a class, found {_name(nodata[0])}; give "
            f"its meaning: --mask-values {said(tuple(inside))} makes it a class, "
            f"--mask-values {said(left_out)} ignores it"
        )
    if lost := [one for one in outside if one not in inside]:
        raise DataError(
            f"{mask.path}: expected valid pixels of the value {_name(lost[0])}, found that the file's {mask.mask} "
            f"masks all of them out, so that the class would be lost; write the mask without it: `gdal_translate -b 1 "
            f"-mask none {mask.path} OUT.tif`, or with a separate value for unknown pixels"
        )


def _require_clear(masks: Sequence[Raster], first_with: Mapping[str, Raster]) -> None:
    """Check that the default meanings are unambiguous.

    Args:
        masks: all masks.
        first_with: the first mask with each value.
    """
    if white := [mask for mask in masks if mask.zero_is_white]:
        top = "255" if "255" in first_with else "1"
        rest = "" if len(white) == len(masks) else ", after saving all masks in one way"
        raise DataError(
            f"{white[0].path}: expected a mask whose larger values are brighter, found that zero is white in "
            f"{len(white)} of {len(masks)} masks; give the meanings{rest}: --mask-values 0=1,{top}=0 if the class is "
            f"displayed white, --mask-values 0=0,{top}=1 if the class has the value {top}"
        )
    if {"1", "255"} <= first_with.keys():
        raise DataError(
            f"expected 0 and 1, or 0 and 255, found 0, 1 and 255 in the masks: 1 in {first_with['1'].path}, 255 in "
            f"{first_with['255'].path}; give their meanings: --mask-values 0=0,1=1,255=1 if both are the class, "
            "--mask-values 0=0,1=1,255=ignore if 255 means unknown"
        )


def _require_ranges(masks: Sequence[Raster], first_with: Mapping[str, Raster], given: Meanings) -> None:
    """Check that no range with a class occurs in the masks only as the nodata value."""
    for one in given:
        first, last, means = one
        inside = [mask for mask in masks if mask.nodata is not None and first <= mask.nodata <= last and first < last]
        if not inside or means == IGNORE or _name(one) in first_with:
            continue
        nodata = int(inside[0].nodata or 0)
        pieces = [(first, nodata - 1, means), (nodata, nodata, means), (nodata + 1, last, means)]
        number = given.index(one)
        with_pieces = (*given[:number], *pieces, *given[number + 1 :])
        as_class = tuple(each for each in with_pieces if each[0] <= each[1])
        left_out = tuple((*each[:2], IGNORE) if each[:2] == (nodata, nodata) else each for each in as_class)
        raise DataError(
            f"{inside[0].path}: expected values of {_name(one)} that are data, found only its nodata value {nodata} in "
            f"all masks; give its meaning: --mask-values {said(as_class)} makes it a class, "
            f"--mask-values {said(left_out)} ignores it"
        )


def _strips(mask: Raster) -> Iterator[Window]:
    rows = max(1, _STRIP_PIXELS // mask.width)
    for row in range(0, mask.height, rows):
        yield row, 0, min(rows, mask.height - row), mask.width


def _name(meaning: tuple[int, int, int]) -> str:
    first, last, _ = meaning
    return f"{first}" if first == last else f"{first}-{last}"
