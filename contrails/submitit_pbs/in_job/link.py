"""A link: the program of a PBS job of this plugin, `python -m contrails.submitit_pbs.in_job.link FOLDER`.

It decides whether there is work to do, submits the next link, starts the tasks (submitit's own runner, with output in
submitit's logs), watches the walltime for them, and records the end of the job in the chain. It is a separate process,
so that no crash, kill or signal handler of a task can prevent this.
"""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from submitit.core.utils import JobPaths

from contrails.errors import ClusterError
from contrails.submitit_pbs import client, script
from contrails.submitit_pbs.after import Unfulfilled, depends_on, links_to_wait_for
from contrails.submitit_pbs.avoid import avoiding
from contrails.submitit_pbs.chain import (
    Chain,
    Judgement,
    failed_hosts,
    host_of,
    is_saving,
    judge,
    made_way,
    memory_failures,
    over,
)
from contrails.submitit_pbs.in_job.clock import Clock
from contrails.submitit_pbs.in_job.successor import Successor
from contrails.submitit_pbs.in_job.tasks import Process, job_environment, kill_tasks, start_tasks, stores_error
from contrails.submitit_pbs.limits import decide_memory_mb, read_nodes
from contrails.submitit_pbs.search import element_id
from contrails.submitit_pbs.states import (
    CANCELLED,
    COMPLETED,
    FAILED,
    HANDED_OVER,
    NODE_FAIL,
    REFUSED,
    TASK_EXITS,
    TIMEOUT,
    Verdict,
    deleted_by_scheduler,
    read_verdict,
)

_POLL_S = 0.1
_GHOST_POLL_S = 10.0
_TERM_GRACE_S = 0.5
_SAVING_S = 30.0
"""Seconds for which the processes of a link may still save after TERM, when PBS already reports the link as ended."""
_ASK_S = 2.0
_LAST_WORD_S = 2.0
_TERMINATED = 128 + signal.SIGTERM


class Link:
    """One PBS job of a chain, or an element of an array, which has no chain."""

    def __init__(self, folder: str) -> None:
        self.job_id = os.environ["PBS_JOBID"]
        self.number = int(os.environ.get(script.LINK, "1"))
        self.spec = script.spec_of(os.environ)
        array, index = os.environ.get("PBS_ARRAY_ID"), os.environ.get("PBS_ARRAY_INDEX")
        first_id = os.environ.get(script.FIRST_ID, self.job_id) if array is None else element_id(array, index or "")
        self.tasks = [JobPaths(folder, first_id, rank) for rank in range(self.spec.num_tasks)]
        self.first_id = first_id
        self.chain = Chain(self.tasks[0].folder, first_id)
        self.clock = Clock.of_this_job()
        path = self.tasks[0].submission_file
        self.next = Successor(self.chain, self.spec, self.job_id, self.number, path, self._say)
        self._token = secrets.token_hex(8)
        self._warned = self._term_came = False
        self._deleted: bool | None = None

    def run(self) -> int:
        """Run this link; return its exit code, which is 0 only if no link shall follow."""
        signal.signal(signal.SIGTERM, self._on_term)
        self._log_to(self.tasks[0])
        self._await_saving()
        if self._is_settled():
            self._say("the job is cancelled or over: nothing to do")
            return 0
        if self._has_result():  # the previous link was ended after its tasks had written their results
            self._finish_with_result()
            return 0
        self._remove_leftovers()
        before = {row["event"] for row in self.chain.rows() if row.get("job_id") == self.job_id}
        self.chain.append("start", link=self.number, job_id=self.job_id, token=self._token)
        is_rerun = "start" in before  # PBS runs this job again
        if self.number > 1 and "judged" not in before:
            judgement = self._record_judgement()
            if judgement.final is not None:
                self._finish(judgement.final, judgement.reason)
                return 0
            if self._submit_with_more_memory(judgement) or self._submit_off_failed_nodes(judgement):
                return 0
        if self.spec.after and self._submit_if_others_go_on():
            return 0
        if not self.next.hold(self._memory_mb(), is_rerun=is_rerun):
            return 0
        code = self._run_tasks()
        return self._conclude(code if code is None else self._torn_down(code))

    def _on_term(self, _number: int, _frame: object) -> None:
        self._term_came = True

    def _log_to(self, task: JobPaths) -> None:
        """Redirect this process's stderr to the log that `job.stderr()` shows."""
        task.folder.mkdir(parents=True, exist_ok=True)
        with (task.stdout if self.spec.stderr_to_stdout else task.stderr).open("ab") as file:
            os.dup2(file.fileno(), sys.stderr.fileno())

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a full disk must not end the job
            print(f"link {self.number}, job {self.job_id}: {text}", file=sys.stderr, flush=True)  # noqa: T201

    def _await_saving(self) -> None:
        """Wait until the previous link, or the previous run of this link, has saved; PBS calls it ended at TERM."""
        give_up = time.monotonic() + _SAVING_S
        while is_saving(self.chain.rows()) and time.monotonic() < give_up and not self._term_came:
            time.sleep(_POLL_S)

    def _is_settled(self) -> bool:
        rows = self.chain.rows()
        return self.chain.cancelled or over(rows) is not None or made_way(rows, self.job_id)

    def _remove_leftovers(self) -> None:
        """Remove temporary files of killed writers: submitit cannot save while one exists."""
        for task in self.tasks:
            for path in (task.result_pickle, task.submitted_pickle):
                path.with_suffix(f"{path.suffix}.save_tmp").unlink(missing_ok=True)

    def _has_result(self) -> bool:
        return all(task.result_pickle.exists() for task in self.tasks)

    # the predecessor

    def _record_judgement(self) -> Judgement:
        """Determine why the predecessor ended and what follows from it, and record that in the chain."""
        rows = self.chain.rows()
        prior = next((row["after"] for row in rows if row.get("job_id") == self.job_id and "after" in row), None)
        if prior is None:  # its submitter was killed before it could record this link
            prior = next(
                row["job_id"] for row in reversed(rows) if row["event"] == "start" and row["link"] < self.number
            )
        judgement = judge(rows, prior, _ask(prior), self.spec.budgets)
        lacked = judgement.lacked_memory
        node = host_of(rows, str(prior))
        self.chain.append("judged", job_id=self.job_id, cause=judgement.cause, lacked_memory=lacked, node=node)
        if judgement.cause is not None:
            self._say(f"job {prior} ended: {judgement.cause}")
        return judgement

    def _submit_with_more_memory(self, judgement: Judgement) -> bool:
        """Submit a link with more memory in place of this one, if the predecessor lacked memory."""
        has = self._memory_mb()
        if not judgement.lacked_memory or has is None:
            return False
        wanted = decide_memory_mb(self.spec.qsub, memory_failures(self.chain.rows()), read_nodes())
        if wanted is None or wanted <= has:
            return False
        self._say(f"{judgement.cause} with {has} MB: requesting {wanted} MB")
        return self._submit_in_place([], wanted)

    def _submit_off_failed_nodes(self, judgement: Judgement) -> bool:
        """Submit a link in place of this one that avoids failed nodes, if this one has started on such a node."""
        failed = failed_hosts(self.chain.rows())
        if judgement.cause != NODE_FAIL or socket.gethostname() not in failed:
            return False
        more = avoiding(self.spec.qsub, read_nodes(), failed)
        if more is None:
            self._say(f"this node, {socket.gethostname()}, has failed before, but PBS has no other node for this job")
            return False
        self._say(f"avoiding {', '.join(dict.fromkeys(failed))}: requesting {more}")
        return self._submit_in_place([], self._memory_mb(), more)

    def _submit_in_place(
        self, options: Sequence[str], memory_mb: int | None, more: Mapping[str, str] | None = None
    ) -> bool:
        """Submit another link in place of this one; return whether PBS accepted it."""
        if self.next.submit(options, memory_mb, more) is None:
            return False
        self.chain.append("replaced", job_id=self.job_id)
        return True

    def _submit_if_others_go_on(self) -> bool:
        """Submit a link in place of this one that waits longer, if a job that must succeed first has not ended.

        If PBS does not answer or refuses that link, this one waits itself. Return whether this link must exit.
        """
        while True:
            try:
                links = links_to_wait_for(self.spec.after)
                if not links:
                    return False
                if self._submit_in_place(depends_on(links), self._memory_mb()):
                    return True
                why = f"it could not wait any longer for other jobs: {self.next.refusal}"
            except Unfulfilled as error:
                self._finish(CANCELLED, str(error), is_orphan=True)
                return True
            except ClusterError as error:
                why = str(error)
            if self._term_came or self.clock.is_near_end():
                self._finish(FAILED, why)  # a new submission checks the other jobs again
                return True
            time.sleep(_GHOST_POLL_S)

    def _memory_mb(self) -> int | None:
        asked = os.environ.get(script.MEM_MB)
        return script.memory_mb(self.spec.qsub) if asked is None else int(asked)

    # the tasks

    def _run_tasks(self) -> int | None:
        """Run all tasks to their end; return 0 or the code of one that failed; None if the job runs elsewhere."""
        processes = start_tasks(self.tasks, self.first_id, self._restarts(), self.spec.stderr_to_stdout)
        looked = time.monotonic()
        failed = 0
        while True:
            self._write_term()
            running = [process for process in processes if process.poll() is None]
            failed = failed or next((process.returncode for process in processes if process.returncode), 0)
            if not running:
                return failed if failed >= 0 else 128 - failed
            if failed:
                kill_tasks(running)  # they would wait forever for the failed one
            elif not self._warned and self.clock.is_near_end():
                self._warned = True
                self._warn(running)
            elif self._warned:
                self.next.try_again(self._memory_mb())  # while the tasks save
            elif time.monotonic() - looked > _GHOST_POLL_S:
                looked = time.monotonic()
                if self._is_ghost():
                    kill_tasks(running)
                    return None
            time.sleep(_POLL_S)

    def _torn_down(self, code: int) -> int:
        """Run the shell lines after the tasks; return their exit code."""
        if not self.spec.teardown:
            return code
        lines = "\n".join(["trap : TERM", *self.spec.teardown, "exit $code"])
        environment = os.environ | job_environment(self.tasks, self.first_id, self._restarts()) | {"code": str(code)}
        return subprocess.run(["bash", "-c", lines], env=environment, stdout=sys.stderr, check=False).returncode

    def _restarts(self) -> int:
        rows = self.chain.rows()
        starts = [str(row["job_id"]) for row in rows if row["event"] == "start"]
        return len([link for link in starts if not made_way(rows, link)]) - 1

    def _write_term(self) -> None:
        """Record once that TERM came; done here since a signal handler may not write files safely."""
        if not self._term_came or self._deleted is not None:
            return
        # after the warning, TERM may mean the walltime, which PBS counts from before this process started
        self._deleted = not self._warned
        self.chain.append("term", job_id=self.job_id, early=self._deleted)
        if self._deleted and deleted_by_scheduler(_comment(self.job_id)):
            self.chain.append("preempted", job_id=self.job_id)

    def _warn(self, processes: list[Process]) -> None:
        """Tell the tasks to save and leave; meanwhile make sure that there is a next link."""
        self.chain.append("warning", job_id=self.job_id, seconds_left=round(self.clock.seconds_left(), 1))
        for process in processes:
            process.send_signal(signal.SIGUSR2)
        self.next.ensure(self._memory_mb())

    def _is_ghost(self) -> bool:
        """Return whether PBS has lost this node and started the job again elsewhere, while this link still runs."""
        starts = [row["token"] for row in self.chain.rows() if row["event"] == "start"]
        return bool(starts[-1] != self._token)

    # the end

    def _conclude(self, code: int | None) -> int:
        if code is None or self._is_ghost():
            self._say("this job was started again elsewhere; leaving the chain to that run")
            return 1
        # a warning or TERM may come between a task's result and its end; submitit then exits as if it had saved
        if code == 0 or (code in HANDED_OVER and self._has_result()):
            self._finish_with_result()
            return 0
        if not self._term_came and code in {*HANDED_OVER, _TERMINATED}:
            time.sleep(_TERM_GRACE_S)  # PBS sends TERM to one process after another, so it may still come
        self._write_term()
        if self._deleted:
            return self._leave(code)
        if code not in {*HANDED_OVER, *TASK_EXITS}:
            return self._give_up(FAILED, code, "see the logs for the error of the task")
        # the next link may be missing if the task left before the warning, or if PBS has refused it so far
        seconds = min(self.spec.margin_s, self.clock.seconds_left() - _LAST_WORD_S)
        if self.next.insist(self._memory_mb(), seconds, lambda: self._term_came):
            return self._leave(code)
        if self.next.refusal is not None:
            return self._give_up(REFUSED, code, f"the next link could not be submitted: {self.next.refusal}")
        return self._give_up(TIMEOUT if code in HANDED_OVER else TASK_EXITS[code], code, "there is no next link")

    def _leave(self, code: int) -> int:
        self.chain.append("ended", job_id=self.job_id, code=code)
        return code

    def _give_up(self, state: str, code: int, reason: str) -> int:
        self._finish(state, f"exit code {code}: {reason}")
        self.next.delete()
        return code

    def _finish_with_result(self) -> None:
        if any(stores_error(task) for task in self.tasks):
            self._finish(FAILED, "a task ended with an error; see the logs")
        else:
            self._finish(COMPLETED, None)

    def _finish(self, state: str, reason: str | None, *, is_orphan: bool = False) -> None:
        word = {"state": state, "reason": reason, "has_result": self._has_result(), "is_orphan": is_orphan}
        self.chain.append("over", job_id=self.job_id, **word)
        if reason is not None:
            self._say(f"{state}: {reason}")


def _ask(job_id: str) -> Verdict | None:
    """Return what PBS says about a job; None if it does not answer or does not know the job."""
    try:
        attributes = client.query([job_id]).get(job_id)
    except ClusterError:
        return None
    return None if attributes is None else read_verdict(attributes)


def _comment(job_id: str) -> str:
    """Return PBS's comment on this job, which it still knows shortly after TERM even without a history."""
    try:
        return client.query([job_id], timeout_s=_ASK_S).get(job_id, {}).get("comment", "")
    except ClusterError:
        return ""


def main() -> None:
    """Run the link of this job."""
    sys.exit(Link(sys.argv[1]).run())


if __name__ == "__main__":
    main()
