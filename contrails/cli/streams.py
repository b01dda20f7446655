"""Standard streams that may be closed, full, without a reader, or in an encoding that lacks a character.

A failed write to standard output is an error, since the output is lost. A failed write to standard error is ignored,
since a lost message must not end the work.
"""

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, TextIO

from contrails.errors import StorageError
from contrails.files import reason_of

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class ReaderGone(Exception):
    """The reader has closed the pipe, as in `contrails status | head`."""


class _Output(io.FileIO):
    """Standard output that raises on the first failed write only; later writes are dropped."""

    def __init__(self, descriptor: int, *, was_closed: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._was_closed, self._lost = was_closed, False

    def write(self, data: "ReadableBuffer", /) -> int:
        if self._lost:
            return memoryview(data).nbytes
        try:
            if self._was_closed:
                raise OSError("it is closed")
            return super().write(data)
        except BrokenPipeError as error:
            self._lost = True
            raise ReaderGone from error
        except OSError as error:
            self._lost = True
            raise StorageError(
                f"cannot write to the standard output: {reason_of(error)}; the work of the command is done: "
                "send its output elsewhere, such as to `> FILE`, and run it again"
            ) from error


class _Messages(io.FileIO):
    def write(self, data: "ReadableBuffer", /) -> int:
        with contextlib.suppress(OSError):
            return super().write(data)
        return memoryview(data).nbytes


def open_streams() -> None:
    """Open all three streams: a closed one becomes /dev/null, so that no other file gets its descriptor."""
    closed = {descriptor for descriptor in range(3) if _is_closed(descriptor)}
    for descriptor in sorted(closed):
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, descriptor)
        if null != descriptor:
            os.close(null)
    sys.stdout = _text(_Output(1, was_closed=1 in closed), sys.stdout)
    sys.stderr = _text(_Messages(2, "w", closefd=False), sys.stderr)


def _is_closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


def _text(raw: io.FileIO, was: TextIO | None) -> io.TextIOWrapper:
    """Return a stream in the encoding of the old one; characters outside of it are written as escapes such as \\xe9."""
    encoding = "utf-8" if was is None else was.encoding
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)
