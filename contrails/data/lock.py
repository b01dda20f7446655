"""One process at a time writes a file: an advisory lock, done without where the file system has none."""

import errno
import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contrails.errors import DataError
from contrails.files import storage

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
"""What flock says on a Lustre mounted without `flock`, an NFS without a lock daemon, some FUSE file systems."""

log = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock of `path`, which is created if need be; a process that ends in whatever way gives it back.

    Raises:
        DataError: another process holds it; the message is `busy`.
    """
    with storage(path), path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(busy) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.warning(
                "%s has no file locks (%s): going on without; do not start the same command twice at a time",
                *(path.parent.resolve(), error.strerror),
            )
        yield
