"""Whether a dataset file still holds what was written: every row has its SHA-256 beside it."""

import hashlib
from collections.abc import Callable, Iterator

from contrails.data.store import Dataset
from contrails.progress import bar


def damaged_rows(dataset: Dataset, poll: Callable[[], None] = lambda: None) -> Iterator[str]:
    """Yield "record R: /array ..." for every row whose SHA-256 is not the one that was written with it.

    `poll` is called after every record and may raise to stop.
    """
    with bar("verifying", dataset.num_records) as advance:
        for row, record_id in enumerate(dataset.record_ids):
            for name, digests in dataset.digests.items():
                if hashlib.sha256(getattr(dataset, name)[row].tobytes()).digest() != digests[row].tobytes():
                    yield f"record {record_id}: /{name} is not what was written"
            advance(1)
            poll()
