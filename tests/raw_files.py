"""PNG and TIFF files byte by byte, of kinds that no library writes; nothing of GDAL is used here."""

import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row of each pass of an interlaced PNG file, and the steps."""


def orientation_exif(orientation: int) -> bytes:
    """Exif data that say nothing else."""
    return b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 274, 3, 1, orientation, 0, 0)


def png(
    counts: np.ndarray,
    bits: int,
    colour: int,
    chunks: Sequence[tuple[bytes, bytes]] = (),
    *,
    interlaced: bool = False,
    filters: Sequence[int] = (0,),
) -> bytes:
    """A PNG file of counts (C, H, W); chunks come before the pixels, filters of rows take turns."""
    _, height, width = counts.shape
    passes = [counts[:, y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [counts]
    raw = b"".join(_filtered(each, bits, filters) for each in passes if each.size)
    header = struct.pack(">2I5B", width, height, bits, colour, 0, 0, int(interlaced))
    pixels = zlib.compress(raw)
    parts = [(b"IDAT", pixels[: len(pixels) // 2]), (b"IDAT", pixels[len(pixels) // 2 :])]
    every = [(b"IHDR", header), *chunks, *parts, (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in every)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _filtered(counts: np.ndarray, bits: int, filters: Sequence[int]) -> bytes:
    step, above, out = max(1, len(counts) * bits // 8), b"", b""
    for number, row in enumerate(_packed_rows(counts, bits, ">")):
        kind, above = filters[number % len(filters)], above or bytes(len(row))
        left = bytes(step) + row[:-step]
        before = {
            0: bytes(len(row)),
            1: left,
            2: above,
            3: bytes((a + b) // 2 for a, b in zip(left, above, strict=False)),
        }
        out += bytes([kind]) + bytes((byte - other) & 255 for byte, other in zip(row, before[kind], strict=False))
        above = row
    return out


def _packed_rows(counts: np.ndarray, bits: int, order: str) -> Iterator[bytes]:
    """Rows of pixels (C, H, W), the bands of one after another, of less than 8 bits several in a byte."""
    for row in np.moveaxis(counts, 0, -1):
        if bits >= 8:
            yield row.astype(row.dtype.newbyteorder(order)).tobytes()
        else:
            text = "".join(format(int(count), f"0{bits}b") for count in row.ravel())
            padded = text.ljust(-(-len(text) // 8) * 8, "0")
            yield int(padded, 2).to_bytes(len(padded) // 8, "big")


def tiff(
    pages: Sequence[np.ndarray],
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    big: bool = False,
    rows_a_strip: int = 7,
    compressed: bool = False,
    tags: Sequence[tuple[int, Sequence[int]]] = (),
) -> bytes:
    """A TIFF file of pages of counts (C, H, W), with further tags of 16-bit numbers, directories behind the pixels."""
    word, entry_size = ("Q", 20) if big else ("I", 12)
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    head += struct.pack(f"{order}HH", 8, 0) if big else b""
    out, links = bytearray(head + struct.pack(order + word, 0)), [len(head)]
    for counts in pages:
        num_bands, height, width = counts.shape
        rows = list(_packed_rows(counts, bits, order))
        strips = [b"".join(rows[start : start + rows_a_strip]) for start in range(0, height, rows_a_strip)]
        strips = [zlib.compress(strip) for strip in strips] if compressed else strips
        offsets = [len(out) + sum(map(len, strips[:number])) for number in range(len(strips))]
        out += b"".join(strips)
        kind = {"u": 1, "i": 2, "f": 3}[counts.dtype.kind]
        known: dict[int, tuple[str, Sequence[int]]] = {
            256: ("I", [width]), 257: ("I", [height]), 258: ("H", [bits] * num_bands),
            259: ("H", [8 if compressed else 1]), 262: ("H", [photometric]), 273: (word, offsets),
            277: ("H", [num_bands]), 278: ("I", [rows_a_strip]), 279: (word, list(map(len, strips))),
            339: ("H", [kind] * num_bands), **{tag: ("H", values) for tag, values in tags},
        }  # fmt: skip
        entries = b""
        for tag, (form, values) in sorted(known.items()):
            content = struct.pack(f"{order}{len(values)}{form}", *values)
            room = struct.calcsize(word)
            if len(content) > room:
                place, content = len(out), content
                out += content
                content = struct.pack(order + word, place)
            entries += struct.pack(f"{order}HH{word}", tag, {"H": 3, "I": 4, "Q": 16}[form], len(values))
            entries += content.ljust(room, b"\0")
        struct.pack_into(order + word, out, links[-1], len(out))
        out += struct.pack(order + ("Q" if big else "H"), len(known)) + entries
        links.append(len(out))
        out += struct.pack(order + word, 0)
        assert len(entries) == len(known) * entry_size
    return bytes(out)
