"""Files of others: of every type, depth, layout, nodata and cut, each is read right or refused, or this ends.

The cases are those of tests/judged_files.py, 2,000 of them.
"""

import logging
import sys
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from table import Result, show

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from judged_files import judge

CASES = 2_000


def main() -> None:
    logging.disable(logging.WARNING)  # what GDAL says of files that were cut
    outcomes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:

        @settings(
            max_examples=CASES,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(st.data())
        def run(data: st.DataObject) -> None:
            outcomes.append(judge(Path(folder), data.draw))

        run()
    counted = [Result(outcome, outcomes.count(outcome), "files", "", None) for outcome in sorted(set(outcomes))]
    total = Result("read right or refused", len(outcomes), "files", f"all of {CASES:,}", len(outcomes) >= CASES)
    show("files: the outcome by who wrote them", [*counted, total])


if __name__ == "__main__":
    main()
