"""Submitting the next link, which waits for the end of this one: at the start of this one, or near its walltime.

A site may refuse it because of a limit on queued jobs. It is then submitted again at the warning, while the tasks save,
and after they have ended, as long as the margin lasts. Later links of such a job do not submit theirs at the start, so
that waiting links do not use up the limit.
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
"""Number of retries of a refused submission within the margin."""
_WAIT_FOR_SCRIPT_S = 60.0


class Successor:
    """The next link of a chain.

    Args:
        chain: chain of the job.
        spec: what all of its links are submitted with.
        job_id: id of this link.
        number: number of this link.
        script_path: script of all links.
        say: writes a line to the job's log.
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
        """Whether this job may have a next link."""
        return self._spec.chain != script.NONE and self._number < self._spec.max_links

    def hold(self, mem_mb: int | None, *, is_rerun: bool) -> bool:
        """Submit the next link at the start of this one, if the chain is "held"; return False if it was cancelled."""
        if self._spec.chain != script.HELD or refusal(self._chain.rows()) is not None:
            return True
        return self.ensure(mem_mb, is_rerun=is_rerun)

    def ensure(self, mem_mb: int | None, *, is_rerun: bool = False) -> bool:
        """Submit a successor that waits for the end of this job; return False if the job was cancelled meanwhile."""
        if self.may_exist and not self.exists and not (is_rerun and self._is_unrecorded()):
            self.submit(["-W", f"depend=afternotok:{self._job_id}"], mem_mb)
        if self._chain.cancelled:
            self.delete()
            return False
        return True

    def try_again(self, mem_mb: int | None) -> None:
        """Call `ensure` again, unless the last try was a short while ago."""
        if self.may_exist and time.monotonic() - self._tried > self._spec.margin_s / _TRIES and not self.exists:
            self.ensure(mem_mb)

    def insist(self, mem_mb: int | None, seconds: float, is_over: Callable[[], bool]) -> bool:
        """Retry the submission for at most `seconds`, or until `is_over`; return whether there is a next link.

        The time is random, at least half of `seconds`: links that fill a limit together wait for each other, and one of
        them must leave first.
        """
        give_up = time.monotonic() + seconds * random.uniform(0.5, 1)  # noqa: S311 - moments, not secrets
        while not self.exists and self.may_exist and time.monotonic() < give_up:
            if is_over() or self._chain.cancelled:
                break
            self.try_again(mem_mb)
            time.sleep(_POLL_S)
        return self.exists

    def submit(self, options: Sequence[str], mem_mb: int | None, more: Mapping[str, str] | None = None) -> str | None:
        """Submit the next link and record it; if that fails, log why and return None.

        Args:
            options: additional options of qsub.
            mem_mb: its memory in MB, if it differs.
            more: additional resources for this link only.
        """
        marker = f"{script.FIRST_ID}={self._chain.job_id},{script.LINK}={self._number + 1}"
        qsub = script.with_resources(self._spec.qsub, more or {})
        values = marker
        if mem_mb is not None:
            qsub, values = script.with_memory(qsub, mem_mb), f"{marker},{script.MEM_MB}={mem_mb}"
        _await(self._script)
        try:
            job_id = client.submit(
                [*script.with_variables(qsub, values), *options],
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
        except ClusterError as error:  # when it starts, it finds in the chain that the job is over
            self._say(f"the next link, {job_id}, could not be deleted: {error}")

    def _is_unrecorded(self) -> bool:
        """Return whether an earlier run of this link submitted the next one, but was killed before it recorded that."""
        try:
            return "beforenotok:" in client.query([self._job_id]).get(self._job_id, {}).get("depend", "")
        except ClusterError:
            return False


def _await(path: Path) -> None:
    """Wait until the submitter has renamed the script, which it does after qsub has answered."""
    give_up = time.monotonic() + _WAIT_FOR_SCRIPT_S
    while not path.exists() and time.monotonic() < give_up:
        time.sleep(_POLL_S)
