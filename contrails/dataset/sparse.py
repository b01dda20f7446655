"""A sparse file in RAM, in which only written pages use memory.

HDF5 files are created in it and then written to the disk at once, because HDF5 crashes when it closes a file on a full
disk.
"""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_PAGE = 4096


class SparseFile(io.RawIOBase):
    """A readable, writable and seekable file; bytes that were never written are zero."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._position = self._size = 0

    def save(self, path: Path) -> None:
        """Write the file to `path`, as a sparse file if the file system supports it.

        Raises:
            OSError: the disk is full, or the file cannot be written.
        """
        with path.open("wb") as file:
            for number, page in sorted(self._pages.items()):
                file.seek(number * _PAGE)
                file.write(page[: self._size - number * _PAGE])
            file.truncate(self._size)

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def truncate(self, size: int | None = None, /) -> int:
        self._size = self._position if size is None else size
        return self._size

    def write(self, data: "ReadableBuffer", /) -> int:
        view = memoryview(data).cast("B")
        for number, within, start, end in self._parts(len(view)):
            self._pages.setdefault(number, bytearray(_PAGE))[within : within + end - start] = view[start:end]
        self._position += len(view)
        self._size = max(self._size, self._position)
        return len(view)

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer).cast("B")
        for number, within, start, end in self._parts(len(view)):
            view[start:end] = self._pages.get(number, bytes(_PAGE))[within : within + end - start]
        self._position += len(view)
        return len(view)

    def _parts(self, count: int) -> list[tuple[int, int, int, int]]:
        """Divide the next `count` bytes by pages: (page number, offset in the page, first byte, end byte) of each."""
        parts, start = [], 0
        while start < count:
            number, within = divmod(self._position + start, _PAGE)
            end = min(start + _PAGE - within, count)
            parts.append((number, within, start, end))
            start = end
        return parts
