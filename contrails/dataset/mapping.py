"""The large arrays of a dataset file, mapped where they lie: each in one piece, in the file itself, little-endian.

What other programs made of a file (chunks, compression, links to other files) is refused with the command that repairs
it, since mapping it would show other bytes.
"""

import shlex
from pathlib import Path

import h5py
import numpy as np

from contrails.errors import DataError

KINDS = {
    "bands": (("int16", "uint8", "uint16"), "NTCHW"),
    "votes": (("uint8",), "NHW"),
    "marks": (("uint16",), "NHW"),
}
"""Types and axes of the large arrays."""

_LAYOUTS = {
    h5py.h5d.COMPACT: "kept in the header",
    h5py.h5d.CHUNKED: "chunked",
    h5py.h5d.VIRTUAL: "virtual, made of other files",
}


def map_array(path: Path, name: str, dataset: h5py.Dataset) -> np.ndarray:
    """Map an array of the file at `path`, which is called `name`; no page of it is read.

    Raises:
        DataError: it is not in one piece in this file, of another type, or cut short.
    """
    require_kind(path, name, dataset)
    offset, properties = dataset.id.get_offset(), dataset.id.get_create_plist()
    found = _LAYOUTS.get(properties.get_layout(), "")
    if properties.get_nfilters():
        found = "compressed or filtered"
    elif properties.get_external_count():
        found = "kept in another file"
    elif dataset.dtype != dataset.dtype.newbyteorder("<"):
        found = "big-endian"
    if found:
        raise DataError(f"{path}: /{name} is {found}, expected it in one piece, little-endian; {repaired_by(path)}")
    if offset is None:
        raise DataError(f"{path}: /{name} was never written; prepare it again")
    needed = offset + dataset.size * dataset.dtype.itemsize
    if path.stat().st_size < needed:
        raise DataError(
            f"{path}: expected {needed} bytes, found {path.stat().st_size}: it was cut short; copy it again"
        )
    # copy-on-write: the pages are shared and the file cannot change, while torch sees an array that it may wrap
    return np.memmap(path, dataset.dtype, "c", offset, dataset.shape)


def require_kind(path: Path, name: str, dataset: h5py.Dataset) -> None:
    """Check type and axes of the large array `name`.

    Raises:
        DataError: they are others.
    """
    dtypes, axes = KINDS[name]
    if dataset.dtype.name not in dtypes or dataset.ndim != len(axes):
        raise DataError(
            f"{path}: expected /{name} as {' or '.join(dtypes)} with {len(axes)} axes, found {dataset.dtype} "
            f"with {dataset.ndim}; prepare it again"
        )


def require_own(path: Path, file: h5py.File) -> None:
    """Check that nothing in a file is a link to another one, which a copy of it would lack.

    Raises:
        DataError: something is, or the other file is not there.
    """
    for name, other in links(path, file).items():
        raise DataError(f"{path}: /{name} is a link to {other}, expected it in the file itself; {repaired_by(path)}")


def links(path: Path, file: h5py.File) -> dict[str, str]:
    """Return the names that are links to other files, and these.

    Raises:
        DataError: one of them is not there.
    """
    found = {name: file.get(name, getlink=True) for name in _names(file)}
    others = {name: link.filename for name, link in found.items() if isinstance(link, h5py.ExternalLink)}
    for name, other in others.items():
        if not (path.parent / other).exists():
            raise DataError(f"{path}: /{name} is a link to {other}, which is not there; put that file back")
    return others


def repaired_by(path: Path) -> str:
    """Return what to do about a file that another program has written anew."""
    new = path.with_name(f"{path.stem}-repaired{path.suffix}")
    return f"repair the file: `contrails data join {shlex.quote(str(path))} -o {shlex.quote(str(new))}`"


def _names(group: h5py.Group) -> list[str]:
    """Return the names of all links below a group; those of other files are not followed."""
    names = []
    for name in group:
        names.append(name)
        is_group = isinstance(group.get(name, getlink=True), h5py.HardLink) and group.get(name, getclass=True)
        if is_group is h5py.Group:
            names += [f"{name}/{below}" for below in _names(group[name])]
    return names
