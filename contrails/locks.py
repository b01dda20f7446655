"""Advisory locks on files: a process that ends, in whatever way, gives its locks back."""

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from contrails.errors import RunError
from contrails.files import storage

_INTERVAL_S = 0.1
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
"""What flock says on a Lustre mounted without `flock`, an NFS without a lock daemon, some FUSE file systems."""

log = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, poll: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of `path`, made if need be, or none where the file system has none.

    `poll` is called while another process has it, and may raise to stop. What fails meanwhile is not said of `path`.
    """
    with storage(path):
        file = path.open("a")
    with file:
        while not try_lock(file.fileno(), path):
            poll()
            time.sleep(_INTERVAL_S)
        yield


@contextmanager
def sole_writer(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock of `path`, made with its folder if need be; without one where the file system has no locks.

    What is called `.lock` holds nothing and is removed at the end, since it lies beside what is to be kept; anything
    else, such as a journal, stays.

    Raises:
        RunError: another process holds it; the message is `busy`.
    """
    with contextlib.ExitStack() as files:
        while True:
            with storage(path, "create"):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = files.enter_context(path.open("a"))
            if not try_lock(file.fileno(), path):
                raise RunError(busy)
            if _is_called(path, file.fileno()):
                break  # else whoever had the lock has removed the file meanwhile
        try:
            yield
        finally:
            if path.suffix == ".lock":
                with contextlib.suppress(OSError):  # a leftover is in nobody's way
                    path.unlink()


def _is_called(path: Path, descriptor: int) -> bool:
    """Return whether an open file still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def try_lock(descriptor: int, path: Path) -> bool:
    """Take the lock of an open file unless another process has it; True too where the file system has no locks.

    It is given back when the last copy of the descriptor is closed.
    """
    with storage(path, "lock"):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning(
                "%s has no file locks (%s): going on without; do not start the same command twice at a time",
                *(path.parent.resolve(), error.strerror),
            )
    return True
