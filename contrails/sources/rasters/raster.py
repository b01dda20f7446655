"""The metadata of an image file, independent of its format."""

from dataclasses import dataclass
from pathlib import Path

from contrails.dataset.store import NOWHERE

Window = tuple[int, int, int, int]
"""Row, column, height and width in pixels."""


@dataclass(frozen=True)
class Raster:
    """The metadata of an image file.

    Attributes:
        path: the file.
        height: height in pixels.
        width: width in pixels.
        band_names: names of the bands that `read` returns.
        dtype: type of the counts that `read` returns.
        bits: bits per count, which can be fewer than those of the type; 0 for floating-point types.
        scales: scale of each band: value = scale * count + offset; 1 if the file has none.
        offsets: offset of each band; 0 if the file has none.
        units: unit of the values, or "" if unknown.
        zero_is_white: brightness decreases with the counts; for a palette: its first two colours are white and black.
        palette: counts are colour numbers of a palette.
        nodata: count that means nodata, or None.
        mask: "alpha" or "mask band" if the file has one that marks valid pixels, else "".
        has_alpha: one of the bands is an alpha channel, which `read` does not return.
        crs: coordinate system as WKT, or "".
        transform: maps (column, row) to coordinates; for a DICOM file, to mm.
        control: ground control points or rational polynomials as JSON, or "".
        patient: patient id of a DICOM file, or "".
    """

    path: Path
    height: int
    width: int
    band_names: tuple[str, ...]
    dtype: str
    bits: int
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    units: str = ""
    zero_is_white: bool = False
    palette: bool = False
    nodata: float | None = None
    mask: str = ""
    has_alpha: bool = False
    crs: str = ""
    transform: tuple[float, ...] = NOWHERE
    control: str = ""
    patient: str = ""


def bands_in_front(raster: Raster) -> str:
    """Return the advice for an array with more bands than rows, whose bands may come first; "" for other files."""
    if raster.path.suffix.lower() != ".npy" or len(raster.band_names) <= raster.height:
        return ""
    return (
        f"; the bands of an array come last, and this one has {raster.height} rows and {len(raster.band_names)} bands: "
        "if they come first, save np.moveaxis(array, 0, -1)"
    )


def usual_names(count: int) -> tuple[str, ...]:
    """Return default names for bands: grey for one, red, green, blue for three, else b01, b02, ..."""
    known = {1: ("grey",), 3: ("red", "green", "blue")}
    return known.get(count, tuple(f"b{number:02d}" for number in range(1, count + 1)))
