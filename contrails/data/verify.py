"""Whether a dataset file still holds what was written: every row has its SHA-256 beside it."""

import hashlib
import os
from collections.abc import Callable, Iterator

from contrails.data.layout import places
from contrails.data.store import Dataset
from contrails.files import storage
from contrails.progress import bar


def damaged_rows(dataset: Dataset, poll: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Yield "record R: /array ..." for every row whose SHA-256 is not the one that was written with it.

    `poll` is called after every record and may raise to stop.

    Raises:
        StorageError: the disk does not give the rows back.
    """
    where = places(dataset.path)
    # read, not mapped: a bad disk and a file that is cut short meanwhile are errors here, not signals
    with (
        bar("verifying", dataset.num_records) as advance,
        storage(dataset.path, "read"),
        dataset.path.open("rb") as file,
    ):
        for row, record_id in enumerate(dataset.record_ids):
            for name, digests in dataset.digests.items():
                offset, size = where[name]
                payload = os.pread(file.fileno(), size, offset + row * size)
                if hashlib.sha256(payload).digest() != digests[row].tobytes():
                    yield f"record {record_id}: /{name} is not what was written"
            advance(1)
            poll()
