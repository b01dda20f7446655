"""Finished strips of a scene, kept beside the output, so that a kill costs one row of tiles and not the whole scene.

The file begins with a line of JSON that describes the strips. Each strip follows, from top to bottom: its number of
rows as uint32, the probabilities as uint16, the predicted pixels as bits, and the SHA-256 of these. The first strip
that does not match its digest ends the file.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from contrails.files import storage, to_json
from contrails.sources.tiles import Strip


@dataclass(frozen=True)
class StripFile:
    """Strips of `width` pixels; `about` determines their values: if it differs, the strips are dropped."""

    path: Path
    width: int
    about: dict[str, Any]

    def read(self) -> Iterator[Strip]:
        """Yield the strips that were kept, and truncate an incomplete one at the end.

        Raises:
            StorageError: the file cannot be read or written.
        """
        head = f"{to_json(self.about)}\n".encode()
        with storage(self.path), self.path.open("a+b") as file:
            file.seek(0)
            if file.read(len(head)) != head:
                file.truncate(0)
                file.write(head)
                return
            row = 0
            while (strip := self._next(file, row)) is not None:
                row, end = row + len(strip.values), file.tell()
                yield strip
            file.truncate(end if row else len(head))

    def keep(self, strip: Strip) -> None:
        """Append the strip below the last one.

        Raises:
            StorageError: the disk is full.
        """
        count = len(strip.values).to_bytes(4, "little")
        content = count + np.asarray(strip.values, "<u2").tobytes() + np.packbits(strip.predicted).tobytes()
        with storage(self.path), self.path.open("ab") as file:
            file.write(content + hashlib.sha256(content).digest())

    def _next(self, file: IO[bytes], row: int) -> Strip | None:
        count = file.read(4)
        pixels = int.from_bytes(count, "little") * self.width
        values, predicted = file.read(2 * pixels), file.read(-(-pixels // 8))
        if not pixels or file.read(32) != hashlib.sha256(count + values + predicted).digest():
            return None
        bits = np.unpackbits(np.frombuffer(predicted, np.uint8), count=pixels)
        shape = (-1, self.width)
        return Strip(row, np.frombuffer(values, "<u2").reshape(shape), bits.view(bool).reshape(shape))
