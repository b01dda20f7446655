"""Jobs that wait for the success of other jobs.

A PBS dependency sees the end of one link, not of the whole chain. So PBS holds a waiting job until the current links of
the others have ended. The job then reads their chains. If one of them continues, it submits itself again, to wait for
the next link of that chain.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from submitit.core.utils import JobPaths

from contrails.submitit_pbs import client
from contrails.submitit_pbs.chain import Chain, current_id, over
from contrails.submitit_pbs.script import name_in
from contrails.submitit_pbs.search import next_link, pbs_id
from contrails.submitit_pbs.states import COMPLETED, LOST, read_verdict


class Unfulfilled(Exception):
    """A job that must succeed first has failed, was cancelled or is lost."""


def links_to_wait_for(jobs: Sequence[str]) -> list[str]:
    """Return the ids of the links that must end before the next check; empty if all jobs have succeeded.

    Args:
        jobs: `<folder>/<job id>` of each job.

    Raises:
        Unfulfilled: one has failed, was cancelled, or is lost.
        ClusterError: PBS does not answer.
    """
    chains = [Chain(path.parent, path.name) for path in map(Path, jobs)]
    unfinished = [chain for chain in chains if not _has_succeeded(chain)]
    links = {chain: current_id(chain.rows(), pbs_id(chain.job_id)) for chain in unfinished}
    found = client.query(links.values()) if links else {}
    waiting = []
    for chain, current in links.items():
        link = _living(chain, current, found)
        if link is not None and not chain.cancelled:
            waiting.append(link)
        elif not _has_succeeded(chain):  # it may have succeeded since the check above
            raise Unfulfilled(f"job {chain.job_id}, which had to succeed first, ended: {LOST}")
    return waiting


def _living(chain: Chain, link: str, found: Mapping[str, Mapping[str, str]]) -> str | None:
    """Return the waiting or running link of a job: `link` or one that follows it; None if there is none.

    PBS ignores a dependency on a job that it does not know, and would start the waiting job at once.
    """
    name = name_in(JobPaths(chain.path.parent, chain.job_id).submission_file)
    current: str | None = link
    while current is not None and (current not in found or read_verdict(found[current]).over):
        current = next_link(chain.rows(), current, pbs_id(chain.job_id), name)
        found = client.query([current]) if current is not None else {}
    return current


def depends_on(links: Sequence[str]) -> list[str]:
    """Return the options of qsub for a job that starts when these links have ended, successfully or not."""
    return ["-W", f"depend=afterany:{':'.join(links)}"] if links else []


def _has_succeeded(chain: Chain) -> bool:
    last_word = over(chain.rows())
    if last_word is not None and last_word["state"] != COMPLETED:
        raise Unfulfilled(f"job {chain.job_id}, which had to succeed first, ended: {last_word['state']}")
    return last_word is not None
