"""Advisory locks on files: a process that ends, in whatever way, gives its locks back."""

import errno
import fcntl
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from contrails.errors import DataError
from contrails.files import storage

_INTERVAL_S = 0.1
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
"""What flock says on a Lustre mounted without `flock`, an NFS without a lock daemon, some FUSE file systems."""

log = logging.getLogger(__name__)


@contextmanager
def locked(file: IO[Any], poll: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of an open file, or none where the file system has none.

    `poll` is called while another process has it, and may raise to stop.
    """
    held = False
    while not held:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            poll()
            time.sleep(_INTERVAL_S)
        except OSError as error:
            _require_no_locks(error, Path(file.name))
            break
    try:
        yield
    finally:
        if held:
            fcntl.flock(file, fcntl.LOCK_UN)


@contextmanager
def sole_writer(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock of `path`, made with its folder if need be; without one where the file system has no locks.

    Raises:
        DataError: another process holds it; the message is `busy`.
    """
    with storage(path, "create"):
        path.parent.mkdir(parents=True, exist_ok=True)
    with storage(path), path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(busy) from error
        except OSError as error:
            _require_no_locks(error, path)
        yield


def _require_no_locks(error: OSError, path: Path) -> None:
    """Warn that the file system has no locks; raise the error again if it means anything else."""
    if error.errno not in _NO_LOCKS:
        raise error
    log.warning(
        "%s has no file locks (%s): going on without; do not start the same command twice at a time",
        *(path.parent.resolve(), error.strerror),
    )
