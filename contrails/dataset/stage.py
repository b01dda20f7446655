"""Node-local copies of dataset files, shared by all folds on the node."""

import logging
from collections.abc import Callable
from pathlib import Path

from contrails.dataset.store import open_dataset
from contrails.dataset.verify import damaged_rows
from contrails.errors import DataError, StorageError
from contrails.files import atomic_path, copy_blocks, remove_leftovers, storage
from contrails.locks import locked

log = logging.getLogger(__name__)


def stage(path: Path, folder: Path, poll: Callable[[], None] = lambda: None) -> Path:
    """Return a verified copy of a dataset file in `folder`, or `path` itself if there is no space for a copy.

    The first fold copies while the others wait for its lock. A copy gets its name when it is complete and verified, and
    the name holds the fingerprint of the content. An existing copy is used without reading its rows again; one that is
    truncated or has another fingerprint is copied again.

    Args:
        path: the dataset file.
        folder: a folder on a disk of this node.
        poll: called during the copy; may raise to stop.

    Raises:
        DataError: the file or its new copy is damaged.
    """
    fingerprint = open_dataset(path).fingerprint
    target = folder / f"{path.stem}-{fingerprint[:16]}.h5"
    try:
        with storage(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f".{target.name}.lock", poll):
            if not _is_copy(target, fingerprint):
                _copy(path, target, fingerprint, poll)
    except StorageError as error:
        log.warning("no copy of the dataset on this node, so training reads the slower shared file: %s", error)
        return path
    return target


def _is_copy(target: Path, fingerprint: str) -> bool:
    if not target.exists():
        return False
    try:
        if open_dataset(target).fingerprint == fingerprint:
            return True
        problem = "its fingerprint is not the one in its name"
    except DataError as error:  # files on a node's disk can be truncated, for example by a clean-up
        problem = str(error)
    log.warning("%s is damaged and is copied again: %s", target, problem)
    return False


def _copy(path: Path, target: Path, fingerprint: str, poll: Callable[[], None]) -> None:
    remove_leftovers(target)
    log.info("staging %s as %s", path, target)
    with atomic_path(target) as temporary:
        with path.open("rb") as source, temporary.open("wb") as copy:
            copy_blocks(source, copy, poll)
        copied = open_dataset(temporary)
        damaged = list(damaged_rows(copied, poll))
        if copied.fingerprint != fingerprint:
            damaged.append("the records' ids, times or annotators differ from those of the file")
        if damaged:
            raise DataError(
                "\n".join([f"the copy of {path} is damaged; run `contrails data verify {path}`:", *damaged[:5]])
            )
