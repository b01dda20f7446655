"""Checks of the container of an image: its format, whether the file is complete, and its orientation tag.

GDAL detects missing pixels, but it accepts a PNG file without its end, and it silently drops tags that are missing in a
truncated TIFF file. It reports orientation tags only for JPEG and never applies them.
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
    b"BM": "BMP",
}
"""GDAL's name of each format by the first bytes of a file."""

_ORIENTATION = 274
_KIND_OF_PAGE, _IS_SMALLER, _IS_MASK, _SIZE_TAGS = 254, 1, 4, (256, 257)
_LONG = 4
_SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes per number of each TIFF type with more than one byte per number; other types have one."""

_EXIF, _APP1, _START_OF_SCAN, _END_OF_IMAGE = b"Exif\0\0", 0xE1, 0xDA, b"\xff\xd9"
_BIT_FIELDS = (3, 6)
"""Compression types of BMP files that have bit masks for the colours."""

_START_OF_CODESTREAM, _START_OF_TILE = b"\xff\x4f\xff\x51", b"\xff\x90"
_IEND_CHECKSUM = b"\xae\x42\x60\x82"


@dataclass(frozen=True)
class Container:
    """GDAL's name of the format, and the orientation: 1 is as stored, 2 to 8 are rotated or mirrored for display."""

    driver: str
    orientation: int = 1


def look_into(path: Path) -> Container:
    """Return the format and the orientation of an image file.

    Raises:
        DataError: the format is unknown, or the file is truncated or an animation.
    """
    with path.open("rb") as file:
        start = file.read(16)
        driver = next((name for magic, name in _DRIVERS.items() if start.startswith(magic)), None)
        if driver is None:
            raise DataError(
                f"{path}: expected TIFF, PNG, JPEG, BMP or JPEG 2000, found a damaged file or another format, which "
                f"begins with {start[:8]!r}; get it again, or convert it"
            )
        try:
            tags = {"PNG": _png, "JPEG": _jpeg, "GTiff": _tiff, "BMP": _bmp, "JP2OpenJPEG": _jpeg_2000}.get(
                driver, lambda _: {}
            )(file)
        except _Refused as error:
            raise DataError(f"{path} {error}") from error
    orientation = tags.get(_ORIENTATION, 1)
    return Container(driver, orientation if 2 <= orientation <= 8 else 1)


class _Refused(Exception):
    pass


def _png(file: BinaryIO) -> dict[int, int]:
    """Walk over the chunks of a PNG file to its end; GDAL checks the checksums of the pixels when it reads them."""
    tags: dict[int, int] = {}
    file.seek(8)
    while True:
        head = file.read(8)
        if len(head) < 8:
            raise _Refused("is truncated: its end (the chunk IEND) is missing; get it again")
        length, kind = struct.unpack(">I4s", head)
        if kind == b"acTL":
            raise _Refused("is an animation: expected one image; write the frame that you need to a file of its own")
        if kind == b"IEND":
            if file.read(4) != _IEND_CHECKSUM:
                raise _Refused("is truncated or damaged at its end (the chunk IEND); get it again")
            return tags
        if kind == b"eXIf":
            tags = _exif_tags(file.read(length))
            file.seek(4, io.SEEK_CUR)
        else:
            file.seek(length + 4, io.SEEK_CUR)


def _jpeg(file: BinaryIO) -> dict[int, int]:
    """Return the tags of the first Exif block, empty without one, and check that the file has an end marker."""
    tags: dict[int, int] | None = None
    file.seek(2)
    while file.read(1) == b"\xff":
        while (marker := file.read(1)) == b"\xff":  # a marker may be preceded by any number of fill bytes
            pass
        length = file.read(2)
        if len(length) < 2 or marker[0] == _START_OF_SCAN:
            break
        content = file.read(max(struct.unpack(">H", length)[0] - 2, 0))
        if marker[0] == _APP1 and content.startswith(_EXIF) and tags is None:
            tags = _exif_tags(content[len(_EXIF) :])
    if _END_OF_IMAGE not in file.read():
        raise _Refused("is truncated: its end (the marker EOI) is missing; get it again")
    return tags or {}


def _jpeg_2000(file: BinaryIO) -> dict[int, int]:
    """Walk over the tile-parts of a JPEG 2000 file to the end of its codestream, as OpenJPEG accepts truncated ones."""
    try:
        _seek_codestream(file)
        while True:
            place = file.tell()
            marker, length = struct.unpack(">2sH", file.read(4).ljust(4, b"\0"))
            if marker == _START_OF_TILE:
                (size,) = struct.unpack(">2xI2x", file.read(8))
                if size == 0:  # allowed for the last tile-part: it extends to the end of the codestream
                    size = 12 + file.read().index(_END_OF_IMAGE)
                file.seek(place + size)
            elif marker == _END_OF_IMAGE:
                return {}
            elif marker[0] == 0xFF:
                file.seek(place + 2 + length)
            else:
                raise _Refused("is truncated or damaged: a piece of its codestream is missing; get it again")
    except (struct.error, ValueError, OSError) as error:
        raise _Refused("is truncated: the end of its codestream (the marker EOC) is missing; get it again") from error


def _seek_codestream(file: BinaryIO) -> None:
    """Seek behind the first marker of the codestream, which is the whole file or the content of one of its boxes."""
    file.seek(0)
    if file.read(4) == _START_OF_CODESTREAM:
        file.seek(2)
        return
    place = 0
    while True:
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        if kind == b"jp2c":
            file.seek(2, io.SEEK_CUR)
            return
        if length < 8:
            raise _Refused("is damaged: it has no codestream; get it again")
        place += length


def _bmp(file: BinaryIO) -> dict[int, int]:
    """Refuse a BMP file whose colours do not have 8 bits each, because GDAL does not report their depth."""
    file.seek(28)
    depth, packing = struct.unpack("<HI", file.read(6).ljust(6, b"\0"))
    if depth == 16 or packing in _BIT_FIELDS:
        raise _Refused("has colours of less than 8 bits each, or in a non-standard order; convert it to PNG")
    return {}


def _tiff(file: BinaryIO) -> dict[int, int]:
    """Return the tags of the first directory of a TIFF file after checking that the file holds all tags.

    GDAL silently drops tags beyond the end of a truncated file (nodata, scales, georeference, masks). It also ignores
    pages that are declared as smaller copies, even if they are as large as the image.
    """
    first: dict[int, int] | None = None
    size, seen = file.seek(0, io.SEEK_END), set[int]()
    try:
        reader = _Directories(file)
        while reader.next and reader.next not in seen:
            seen.add(reader.next)
            tags, end = reader.read()
            if end > size:
                raise _Refused(f"is truncated: it has {size} bytes, and its tags extend to byte {end}; get it again")
            if first and _is_page(tags, first):
                raise _Refused(
                    "has several pages: expected one image; write the page that you need to a file of its own: "
                    "`tiffsplit FILE PAGE-` writes all pages to files"
                )
            first = tags if first is None else first
    except (struct.error, OverflowError, OSError) as error:
        raise _Refused("is truncated or damaged: it ends within its directories of tags; get it again") from error
    tags = first or {}
    if not 1 <= tags.get(_ORIENTATION, 1) <= 8:  # GDAL accepts only some of these files
        raise _Refused(
            f"has the orientation tag {tags[_ORIENTATION]}, expected 1 to 8; correct it: `tiffset -s 274 1 FILE`"
        )
    return tags


def _is_page(tags: dict[int, int], first: dict[int, int]) -> bool:
    """Return whether a directory is a page: declared as a smaller copy, but as large as the first directory."""
    kind = tags.get(_KIND_OF_PAGE, 0)
    same_size = all(tags.get(tag) == first.get(tag) for tag in _SIZE_TAGS)
    return same_size and bool(kind & _IS_SMALLER) and not kind & _IS_MASK


def _exif_tags(content: bytes) -> dict[int, int]:
    """Return the tags of Exif data; empty if the data are broken, as viewers ignore them too."""
    try:
        return _Directories(io.BytesIO(content)).read()[0]
    except (struct.error, OverflowError, OSError):
        return {}


class _Directories:
    """Reads the directories of a TIFF file, one after another; `next` is the offset of the next one, or 0."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        file.seek(0)
        start = file.read(16)
        self._order = ">" if start[:2] == b"MM" else "<"
        self._is_big = start[2:4] in (b"\0+", b"+\0")
        self._word, counted, place = ("Q", "Q", 8) if self._is_big else ("I", "H", 4)
        self._counted = self._order + counted
        self.next: int = struct.unpack_from(self._order + self._word, start, place)[0]

    def read(self) -> tuple[dict[int, int], int]:
        """Return those tags of the next directory that are a single number, and the byte at which its data end."""
        self._file.seek(self.next)
        tags, end = dict[int, int](), 0
        (num_tags,) = self._unpack(self._counted)
        for _ in range(num_tags):
            tag, kind, count = self._unpack(f"{self._order}HH{self._word}")
            content = self._file.read(struct.calcsize(self._word))
            length = count * _SIZES.get(kind, 1)
            if length > len(content):
                end = max(end, struct.unpack(self._order + self._word, content)[0] + length)
            else:
                tags[tag] = struct.unpack_from(self._order + ("I" if kind == _LONG else "H"), content)[0]
        (self.next,) = self._unpack(self._order + self._word)
        return tags, max(end, self._file.tell())

    def _unpack(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self._file.read(struct.calcsize(form)))
