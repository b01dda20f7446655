"""Jobs that wait for the success of others.

PBS's own dependencies see the end of a link, not that of its chain. So what waits is held until the current links of
those jobs have ended; then it looks into their chains, and puts itself off again where one goes on.
"""

from collections.abc import Sequence
from pathlib import Path

from contrails.cluster.pbs import client
from contrails.cluster.pbs.chain import Chain, current_id, over, successor_of
from contrails.cluster.pbs.states import COMPLETED, LOST, read_verdict
from contrails.cluster.pbs.watcher import pbs_id


class Unfulfilled(Exception):
    """A job that was to succeed first has ended otherwise."""


def links_to_wait_for(jobs: Sequence[str]) -> list[str]:
    """Return the ids of the links that must end before it is worth looking again; none: all jobs have succeeded.

    Args:
        jobs: `<folder>/<job id>` of each.

    Raises:
        Unfulfilled: one has failed, was cancelled, or is lost.
        ClusterError: PBS does not answer.
    """
    paths = [Path(job) for job in jobs]
    chains = [Chain(path.parent, path.name) for path in paths if not _has_succeeded(Chain(path.parent, path.name))]
    links = {chain: current_id(chain.rows(), pbs_id(chain.job_id)) for chain in chains}
    found = client.query(links.values()) if links else {}
    waiting = []
    for chain, link in links.items():
        attributes = found.get(link)
        if attributes is None or read_verdict(attributes).over:
            if _has_succeeded(chain):  # meanwhile
                continue
            link = successor_of(chain.rows(), link) or ""
        if not link or chain.cancelled:
            raise Unfulfilled(f"job {chain.job_id}, which was to succeed first, ended: {LOST}")
        waiting.append(link)
    return waiting


def depends_on(links: Sequence[str]) -> list[str]:
    """Return the options of qsub for a job that starts when these links have ended, however they ended."""
    return ["-W", f"depend=afterany:{':'.join(links)}"] if links else []


def _has_succeeded(chain: Chain) -> bool:
    last_word = over(chain.rows())
    if last_word is not None and last_word["state"] != COMPLETED:
        raise Unfulfilled(f"job {chain.job_id}, which was to succeed first, ended: {last_word['state']}")
    return last_word is not None
