"""submitit's Job object on PBS: one object for all links of a chain."""

from pathlib import Path
from typing import TypeVar

from submitit.core import core

from contrails.errors import ClusterError
from contrails.submitit_pbs import client
from contrails.submitit_pbs.chain import Chain
from contrails.submitit_pbs.script import name_in
from contrails.submitit_pbs.search import links_to_delete, pbs_id
from contrails.submitit_pbs.watcher import PbsInfoWatcher

R = TypeVar("R", covariant=True)


class PbsJob(core.Job[R]):
    """A job on PBS; its id is that of the first link."""

    watcher = PbsInfoWatcher()

    def wait(self) -> None:
        """Wait until the job is over; if it has ended without a result, `result` then does not wait for one."""
        super().wait()
        if self.watcher.get_info(self.job_id, mode="cache").get("Result") == "none":
            self._results_timeout_s = 0

    def cancel(self, check: bool = True) -> None:
        """Delete the job with all its links, so that none of them starts again.

        Args:
            check: raise if PBS does not answer or refuses.

        Raises:
            ClusterError: a link may still exist; it exits at its next start, when it finds the tombstone.
        """
        try:
            cancel(self.paths.folder, self.job_id, name_in(self.paths.submission_file))
        except ClusterError:
            if check:
                raise

    def _register_in_watcher(self) -> None:
        self.watcher.watch(self.job_id, self.paths)


def cancel(folder: Path, job_id: str, name: str | None) -> None:
    """Create the tombstone of a job called `name`, then delete each of its links that PBS has.

    Raises:
        ClusterError: PBS does not answer or refuses; all links that could be deleted are deleted.
    """
    chain = Chain(folder, job_id)
    chain.cancel()
    failed: ClusterError | None = None
    for link in links_to_delete(chain.rows(), pbs_id(job_id), name):
        try:
            client.delete(link)
        except ClusterError as error:  # still delete the others
            failed = error
    if failed is not None:
        raise failed
