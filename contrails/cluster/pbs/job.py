"""submitit's handle on a job: one object for all links of a chain."""

from typing import TypeVar

from submitit.core import core

from contrails.cluster.pbs import client
from contrails.cluster.pbs.chain import Chain, links_of
from contrails.cluster.pbs.watcher import PbsInfoWatcher, pbs_id
from contrails.errors import ClusterError

R = TypeVar("R", covariant=True)


class PbsJob(core.Job[R]):
    """A job on PBS; its id is that of the first link."""

    watcher = PbsInfoWatcher()

    def cancel(self, check: bool = True) -> None:
        """Delete the job with all its links; nothing of it comes back.

        Args:
            check: raise if PBS does not answer or refuses.

        Raises:
            ClusterError: a link may live on until it looks at the tombstone, before its start.
        """
        chain = Chain(self.paths.folder, self.job_id)
        chain.cancel()
        # the successor first: deleting what it waits for would let it go
        for link in reversed(links_of(chain.rows(), pbs_id(self.job_id))):
            try:
                client.delete(link)
            except ClusterError:
                if check:
                    raise

    def _register_in_watcher(self) -> None:
        self.watcher.watch(self.job_id, self.paths)
