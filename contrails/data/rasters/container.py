"""The bytes around an image: which format they are, whether they are whole, and which way up the image is shown.

GDAL knows by itself where most formats were cut short; a PNG file whose end is missing it takes for a whole one.
Orientation tags it hands on for JPEG alone, and uses nowhere.
"""

import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from contrails.errors import DataError

_DRIVERS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",
    b"MM\0+": "GTiff",
    b"\0\0\0\x0cjP  \r\n\x87\n": "JP2OpenJPEG",
    b"\xff\x4f\xff\x51": "JP2OpenJPEG",
}
"""GDAL's name of each format by the first bytes of a file."""

_ORIENTATION = 274
_PLACE = {33550, 33922, 34264}
"""Tags of a TIFF file: size of a pixel, points with their coordinates, and the whole map."""

_LONG = 4
"""Type of a tag whose number has four bytes."""

_EXIF, _APP1, _START_OF_SCAN = b"Exif\0\0", 0xE1, 0xDA
_IEND_CHECKSUM = b"\xae\x42\x60\x82"
_MOST_ENTRIES = 4096


@dataclass(frozen=True)
class Container:
    """What the bytes around an image say.

    Attributes:
        driver: GDAL's name of the format.
        orientation: 1 is as stored; 2 to 8 are to be turned or mirrored when they are shown.
        has_place: it is a TIFF file with tags that say where on Earth it lies.
    """

    driver: str
    orientation: int = 1
    has_place: bool = False


def look_into(path: Path) -> Container:
    """Return what the bytes around an image say.

    Raises:
        DataError: the file is of no known format, cut short, or an animation.
    """
    with path.open("rb") as file:
        start = file.read(16)
        driver = next((name for magic, name in _DRIVERS.items() if start.startswith(magic)), None)
        if driver is None:
            raise DataError(
                f"{path} is damaged or of another format than its name says: expected TIFF, PNG, JPEG or JPEG 2000, "
                f"found a file that begins with {start[:8]!r}; get it again, or convert it"
            )
        try:
            tags = {"PNG": _png, "JPEG": _jpeg, "GTiff": _tiff}.get(driver, lambda _: {})(file)
        except _Refused as error:
            raise DataError(f"{path} {error}") from error
    orientation = tags.get(_ORIENTATION, 1)
    return Container(driver, orientation if 2 <= orientation <= 8 else 1, bool(_PLACE & set(tags)))


class _Refused(Exception):
    pass


def _png(file: BinaryIO) -> dict[int, int]:
    """Walk over the chunks of a PNG file to its end; the checksums of the pixels are compared when they are read."""
    tags: dict[int, int] = {}
    file.seek(8)
    while True:
        head = file.read(8)
        if len(head) < 8:
            raise _Refused("is cut short: its end (the chunk IEND) is missing; get it again")
        length, kind = struct.unpack(">I4s", head)
        if kind == b"acTL":
            raise _Refused("is an animation: expected one image; write the frame that counts to a file of its own")
        if kind == b"IEND":
            if file.read(4) != _IEND_CHECKSUM:
                raise _Refused("is cut short or damaged in its end (the chunk IEND); get it again")
            return tags
        if kind == b"eXIf":
            tags = _tiff(io.BytesIO(file.read(length)))
            file.seek(4, io.SEEK_CUR)
        else:
            file.seek(length + 4, io.SEEK_CUR)


def _jpeg(file: BinaryIO) -> dict[int, int]:
    """Return the tags of the Exif block among the segments before the image; none where there is no such block."""
    file.seek(2)
    while len(head := file.read(4)) == 4 and head[0] == 0xFF and head[1] != _START_OF_SCAN:
        content = file.read(max(struct.unpack(">H", head[2:])[0] - 2, 0))
        if head[1] == _APP1 and content.startswith(_EXIF):
            return _tiff(io.BytesIO(content[len(_EXIF) :]))
    return {}


def _tiff(file: BinaryIO) -> dict[int, int]:
    """Return the tags in the first directory of a TIFF file or of Exif data, with the number of those that have one.

    What is broken is left out: GDAL refuses a TIFF file without its directory, and no viewer looks at broken Exif data.
    """
    file.seek(0)
    start = file.read(16)
    order = ">" if start[:2] == b"MM" else "<"
    is_big = start[2:4] in (b"\0+", b"+\0")
    place, number, counted, size = (8, "Q", "Q", 20) if is_big else (4, "I", "H", 12)
    tags: dict[int, int] = {}
    try:
        file.seek(struct.unpack_from(order + number, start, place)[0])
        count = struct.unpack(order + counted, file.read(struct.calcsize(counted)))[0]
        for _ in range(min(count, _MOST_ENTRIES)):
            entry = file.read(size)
            tag, kind = struct.unpack_from(order + "HH", entry)
            tags[tag] = struct.unpack_from(order + ("I" if kind == _LONG else "H"), entry, size - place)[0]
    except (struct.error, OverflowError, OSError):
        return tags
    return tags
