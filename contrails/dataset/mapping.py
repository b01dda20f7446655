"""Memory mapping of the large arrays of a dataset file: contiguous, in the file itself, little-endian.

A file that another program has rewritten (with chunks, compression or links to other files) cannot be mapped; it is
refused, and the error names the command that repairs it.
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
"""The allowed types and the axes of each large array."""

_LAYOUTS = {
    h5py.h5d.COMPACT: "kept in the header",
    h5py.h5d.CHUNKED: "chunked",
    h5py.h5d.VIRTUAL: "virtual, made of other files",
}


def map_array(path: Path, name: str, dataset: h5py.Dataset) -> np.ndarray:
    """Map the array `name` of the file at `path` without reading it.

    Raises:
        DataError: the array is not contiguous in this file, has another type, or is truncated.
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
        raise DataError(f"{path}: expected /{name} contiguous and little-endian, found it {found}; {repaired_by(path)}")
    if offset is None:
        raise DataError(f"{path}: expected the array /{name}, found it empty, never written; prepare the file again")
    needed = offset + dataset.size * dataset.dtype.itemsize
    if path.stat().st_size < needed:
        raise DataError(
            f"{path}: expected {needed} bytes, found {path.stat().st_size}: the file is truncated; copy it again"
        )
    # mode "c" (copy-on-write): pages are shared and the file cannot change; torch warns of arrays that are not writable
    return np.memmap(path, dataset.dtype, "c", offset, dataset.shape)


def require_kind(path: Path, name: str, dataset: h5py.Dataset) -> None:
    """Check the type and the number of axes of the large array `name`.

    Raises:
        DataError: they differ from those of a dataset file.
    """
    dtypes, axes = KINDS[name]
    if dataset.dtype.name not in dtypes or dataset.ndim != len(axes):
        raise DataError(
            f"{path}: expected /{name} as {' or '.join(dtypes)} with {len(axes)} axes, found {dataset.dtype} "
            f"with {dataset.ndim}; prepare it again"
        )


def require_own(path: Path, file: h5py.File) -> None:
    """Check that a file has no links to other files, which a copy of it would lack.

    Raises:
        DataError: it has one, or the other file is missing.
    """
    for name, other in links(path, file).items():
        raise DataError(f"{path}: expected /{name} in the file itself, found a link to {other}; {repaired_by(path)}")


def links(path: Path, file: h5py.File) -> dict[str, str]:
    """Return the names in a file that are links to other files, with the paths of these.

    Raises:
        DataError: another file is missing.
    """
    found = {name: file.get(name, getlink=True) for name in _names(file)}
    others = {name: link.filename for name, link in found.items() if isinstance(link, h5py.ExternalLink)}
    for name, other in others.items():
        if not (path.parent / other).exists():
            raise DataError(f"{path}: /{name} is a link to {other}, which does not exist; put that file back")
    return others


def repaired_by(path: Path) -> str:
    """Return the advice for a file that another program has rewritten."""
    new = path.with_name(f"{path.stem}-repaired{path.suffix}")
    return f"repair the file: `contrails data join {shlex.quote(str(path))} -o {shlex.quote(str(new))}`"


def _names(group: h5py.Group) -> list[str]:
    """Return the names of all links below a group, without following links to other files."""
    names = []
    for name in group:
        names.append(name)
        is_group = isinstance(group.get(name, getlink=True), h5py.HardLink) and group.get(name, getclass=True)
        if is_group is h5py.Group:
            names += [f"{name}/{below}" for below in _names(group[name])]
    return names
