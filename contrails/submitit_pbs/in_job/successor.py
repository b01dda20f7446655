"""The link after this one: it waits, held, for the end of this one, or is submitted when the walltime is near.

A site may refuse it for a while, for a limit on queued jobs. Then it is asked again at the warning, while the tasks
save, and when they have ended, as long as the margin lasts. The later links of such a job hold none: the room that
there is, is for jobs that can run.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from contrails.errors import ClusterError
from contrails.submitit_pbs import client, script
from contrails.submitit_pbs.chain import Chain, refusal, successor_of

_POLL_S = 0.1
_TRIES = 20
"""How often in a margin a submission that was refused is tried again."""
_WAIT_FOR_SCRIPT_S = 60.0


class Successor:
    """The next link of a chain.

    Args:
        chain: of the job.
        spec: what all of its links are submitted with.
        job_id: this link.
        number: of this link.
        script_path: the script of all links.
        say: tells the user's log something.
    """

    def __init__(
        self,
        chain: Chain,
        spec: script.Spec,
        job_id: str,
        number: int,
        script_path: Path,
        say: Callable[[str], None],
    ) -> None:
        self._chain, self._spec, self._job_id, self._number = chain, spec, job_id, number
        self._script, self._say = script_path, say
        self._tried = 0.0
        self.refusal: ClusterError | None = None

    @property
    def exists(self) -> bool:
        """Whether the next link was submitted."""
        return successor_of(self._chain.rows(), self._job_id) is not None

    @property
    def may_exist(self) -> bool:
        """Whether there is to be a next link."""
        return self._spec.chain != script.NONE and self._number < self._spec.max_links

    def hold(self, mem_mb: int | None, *, is_rerun: bool) -> bool:
        """Submit it at the start of this link, if links are held; return False if the job was cancelled meanwhile."""
        if self._spec.chain != script.HELD or refusal(self._chain.rows()) is not None:
            return True
        return self.ensure(mem_mb, is_rerun=is_rerun)

    def ensure(self, mem_mb: int | None, *, is_rerun: bool = False) -> bool:
        """Have a successor wait for the end of this job; return False if the job was cancelled meanwhile."""
        if self.may_exist and not self.exists and not (is_rerun and self._is_unrecorded()):
            self.submit(["-W", f"depend=afternotok:{self._job_id}"], mem_mb)
        if self._chain.cancelled:
            self.delete()
            return False
        return True

    def try_again(self, mem_mb: int | None) -> None:
        """Do the same again, unless that was a short while ago."""
        if self.may_exist and time.monotonic() - self._tried > self._spec.margin_s / _TRIES and not self.exists:
            self.ensure(mem_mb)

    def insist(self, mem_mb: int | None, seconds: float, is_over: Callable[[], bool]) -> bool:
        """Try to submit it for about so long, until somebody says that it is over; return whether there is one.

        Links that fill a limit together wait for each other: one of them must be the first to leave.
        """
        give_up = time.monotonic() + seconds * random.uniform(0.5, 1)  # noqa: S311 - moments, not secrets
        while not self.exists and self.may_exist and time.monotonic() < give_up:
            if is_over() or self._chain.cancelled:
                break
            self.try_again(mem_mb)
            time.sleep(_POLL_S)
        return self.exists

    def submit(self, options: Sequence[str], mem_mb: int | None, more: Mapping[str, str] | None = None) -> str | None:
        """Submit the next link and write it down; return None, and say why, if that is not possible.

        Args:
            options: further ones of qsub.
            mem_mb: its memory, if it is to have another amount.
            more: resources that this link alone is to have.
        """
        marker = f"{script.FIRST_ID}={self._chain.job_id},{script.LINK}={self._number + 1}"
        qsub = script.with_resources(self._spec.qsub, more or {})
        values = marker
        if mem_mb is not None:
            qsub, values = script.with_memory(qsub, mem_mb), f"{marker},{script.MEM_MB}={mem_mb}"
        _await(self._script)
        try:
            job_id = client.submit(
                [*qsub, *options, "-v", values],
                str(self._script),
                name=self._spec.name,
                marker=marker,
                patience_s=self._spec.margin_s / 2,
            )
        except ClusterError as error:
            if str(error) != str(self.refusal):
                self._say(f"the next link could not be submitted: {error}")
                self._chain.append("refused", job_id=self._job_id, said=str(error))
            self.refusal = error
            return None
        finally:
            self._tried = time.monotonic()
        self._chain.append("successor", link=self._number + 1, job_id=job_id, after=self._job_id)
        return job_id

    def delete(self) -> None:
        """Delete the next link, if there is one."""
        job_id = successor_of(self._chain.rows(), self._job_id)
        if job_id is None:
            return
        try:
            client.delete(job_id)
        except ClusterError as error:  # it will find the last word in the chain, and leave
            self._say(f"the next link, {job_id}, could not be deleted: {error}")

    def _is_unrecorded(self) -> bool:
        """Return whether this job was killed between the submission and the row: PBS knows who waits for it."""
        try:
            return "beforenotok:" in client.query([self._job_id]).get(self._job_id, {}).get("depend", "")
        except ClusterError:
            return False


def _await(path: Path) -> None:
    """Wait until the submitter has given the script its final name, which it can only after qsub has answered."""
    give_up = time.monotonic() + _WAIT_FOR_SCRIPT_S
    while not path.exists() and time.monotonic() < give_up:
        time.sleep(_POLL_S)
