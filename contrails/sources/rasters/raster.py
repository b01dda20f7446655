"""What a file says of its image, whatever its format."""

from dataclasses import dataclass
from pathlib import Path

from contrails.dataset.store import NOWHERE

Window = tuple[int, int, int, int]
"""Row, column, height and width in pixels."""


@dataclass(frozen=True)
class Raster:
    """What a file says of its image.

    Attributes:
        path: the file.
        height: in pixels.
        width: in pixels.
        band_names: of the bands that `read` returns.
        dtype: of the counts that `read` returns.
        bits: that the counts have: fewer than the type's where the file says so; 0 where it is no integer type.
        scales: for each band; a value is scale * count + offset.
        offsets: for each band; 0 and a scale of 1 where the file does not say any.
        units: of the values, or "" where the file does not say.
        zero_is_white: brightness falls as counts rise; of a palette, its first two colours are white and black.
        palette: counts are numbers of colours.
        nodata: count that stands for no data, or None.
        mask: "alpha" or "mask band" where the file has one that says which pixels are data, or "".
        has_alpha: one of its bands is an alpha channel, which `read` does not return.
        crs: as WKT, or "".
        transform: maps (column, row) to coordinates; of a DICOM file its pixels in mm.
        control: ground control points or rational polynomials that place the image, as JSON, or "".
        patient: of a DICOM file, or "".
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
    """Return what to do about an array with more bands than rows, whose bands may come first; "" of other files."""
    if raster.path.suffix.lower() != ".npy" or len(raster.band_names) <= raster.height:
        return ""
    return (
        f"; the bands of an array come last, and this one has {raster.height} rows and {len(raster.band_names)} bands: "
        "if they come first, save np.moveaxis(array, 0, -1)"
    )


def usual_names(count: int) -> tuple[str, ...]:
    """Return the names of bands that have none: grey, red green blue, or b01 and so on."""
    known = {1: ("grey",), 3: ("red", "green", "blue")}
    return known.get(count, tuple(f"b{number:02d}" for number in range(1, count + 1)))
