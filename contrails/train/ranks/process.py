"""Entry point of a rank other than 0: `python -m contrails.train.ranks.process RUN FOLD CONTEXT`."""

import signal
import sys
from pathlib import Path

from contrails.errors import ContrailsError
from contrails.processes import end_with
from contrails.progress import tell
from contrails.runs.folder import Run
from contrails.train.context import RankContext
from contrails.train.fold import train_rank


def main() -> None:
    """Train as the rank of the given context; end with the process that started this one."""
    run, fold_key, rank = Run(Path(sys.argv[1])), sys.argv[2], RankContext.from_json(sys.argv[3])
    end_with(rank.parent_pid, signal.SIGKILL)  # safe: this process writes no files
    try:
        train_rank(run.fold(fold_key), rank)
    except ContrailsError as error:
        tell(f"error: rank {rank.number}: {error}")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
