"""The tests' side: start the server, see what it knows, and make it do what a real one does to its users."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from fake_pbs.attributes import attributes
from fake_pbs.commands import COMMANDS
from fake_pbs.store import Store


class FakePbs:
    """A server under `root`; its commands are in `bin`. Without a history, the default, it forgets what has ended."""

    def __init__(self, root: Path, *, history: bool = False) -> None:
        self.root, self.bin, self._store = root, root / "bin", Store(root)
        (root / "home").mkdir(parents=True)
        (root / "spool").mkdir()
        self.bin.mkdir()
        self.configure(history=history)
        tests = Path(__file__).parents[1]
        for command in COMMANDS:
            path = self.bin / command
            code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from fake_pbs.commands import main; main()"
            path.write_text(
                f"#!/bin/bash\nexec '{sys.executable}' -I -c '{code}' '{tests}' '{root}' {command} \"$@\"\n"
            )
            path.chmod(0o755)
        code = "import sys; sys.path.insert(0, sys.argv.pop(1)); from fake_pbs.server import main; main()"
        self._process = subprocess.Popen([sys.executable, "-I", "-c", code, str(tests), str(root)])

    def stop(self) -> None:
        """End the server and all its jobs."""
        self._process.terminate()
        self._process.wait()

    def configure(self, **values: Any) -> None:
        """Set fields of the server's state: slots, history, max_queued, lose_replies, lose_requests ..."""
        with self._store.open() as state:
            for key, value in values.items():
                assert hasattr(state, key)
                setattr(state, key, value)

    def go_down(self, seconds: float) -> None:
        self.configure(down_until=time.time() + seconds)

    def order(self, what: str, job_id: str) -> None:
        """Have something done to a job.

        That is preempt, suspend, let go, schedule (delete to make room), node (fails), memory, delete, kill, kill -9.
        """
        with self._store.open() as state:
            state.orders.append((what, job_id))

    def extend(self, job_id: str, walltime: str) -> None:
        """What an operator, or Metacentrum's qextend, does."""
        with self._store.open() as state:
            state.jobs[job_id].walltime = walltime

    def alter(self, job_id: str, **values: Any) -> None:
        """Set fields of a job: another name lets it be somebody else's, comment is what the scheduler says of it."""
        with self._store.open() as state:
            for key, value in values.items():
                setattr(state.jobs[job_id], key, value)

    def purge(self, *job_ids: str) -> None:
        """Forget jobs that are over; all of them without ids."""
        with self._store.open() as state:
            for job in list(state.jobs.values()):
                if job.over and job.id in (job_ids or state.jobs):
                    del state.jobs[job.id]

    def attributes(self, job_id: str) -> dict[str, Any]:
        with self._store.open() as state:
            return attributes(state.jobs[job_id], state)

    def ids(self) -> list[str]:
        with self._store.open() as state:
            return list(state.jobs)

    def calls(self, command: str) -> list[str]:
        """Return the command lines that were run, without their times."""
        path = self.root / "calls.log"
        lines = [line.partition(" ")[2] for line in path.read_text().splitlines()] if path.exists() else []
        return [line for line in lines if line.split()[0] == command]
