"""A node-local copy of a dataset file, made once and used by every fold that sees the folder."""

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
    """Return a copy of a dataset file in `folder`, verified row by row; `path` itself where there is no room for one.

    The first fold copies while the others wait for its lock. A copy gets its name when it is complete and verified, and
    the name carries the content's fingerprint, so a copy that is there is used; its rows are not read again, but one
    that was cut short or says something else is made anew. `poll` is called meanwhile and may raise to stop.

    Raises:
        DataError: the file, or what arrived of it, is damaged.
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
        log.warning("the dataset stays where it is, shared and slower: %s", error)
        return path
    return target


def _is_copy(target: Path, fingerprint: str) -> bool:
    if not target.exists():
        return False
    try:
        if open_dataset(target).fingerprint == fingerprint:
            return True
        problem = "its content is not that of its name"
    except DataError as error:  # nobody looks after a node's own disk: what is there may have been cut short
        problem = str(error)
    log.warning("%s is damaged and copied again: %s", target, problem)
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
            damaged.append("the records' ids, times or annotators are not those of the file")
        if damaged:
            raise DataError(
                "\n".join([f"the copy of {path} is damaged; run `contrails data verify {path}`:", *damaged[:5]])
            )
