"""The scheduler and the node: starts jobs, ends them, lets go what waits for them. `python -m fake_pbs.server ROOT`"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from fake_pbs.commands import seconds
from fake_pbs.store import SERVER, USER, Job, State, Store

CYCLE_S = 0.05
EXITING_S = 1.5
TERM_LATE_S, KILL_AFTER_S, GHOST_S = 4.0, 12.0, 23.0
"""Measured: TERM 2.5 to 7 s after the walltime, KILL 10 to 28 s after TERM, a ghost's 23 s after the requeue.

The job's login shell dies of TERM. So the server takes the job for ended soon after, and lets go what waits for it,
while its processes still save: after a quarter of a second, but real commands are that much faster than those here.
"""


class Server:
    def __init__(self, root: Path) -> None:
        self.store, self.root = Store(root), root
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ghosts: list[tuple[float, subprocess.Popen[bytes]]] = []

    def run(self) -> None:
        while True:
            with self.store.open() as state:
                self._step(state)
            time.sleep(CYCLE_S)

    def stop(self) -> None:
        for process in self.processes.values():
            signal_session(process.pid, signal.SIGKILL)
        for _, ghost in self.ghosts:
            signal_session(ghost.pid, signal.SIGKILL)

    def _step(self, state: State) -> None:
        now = time.time()
        for order, job_id in state.orders:
            if job_id in state.jobs and not state.jobs[job_id].over:
                self._obey(state, order, state.jobs[job_id])
        state.orders = []
        for job in list(state.jobs.values()):
            if job.state in "RE":
                self._watch(state, job, now)
        self.ghosts = [ghost for ghost in self.ghosts if session(ghost[1].pid)]
        for when, ghost in self.ghosts:
            if now > when:
                signal_session(ghost.pid, signal.SIGKILL)
        running = sum(job.state == "R" for job in state.jobs.values())
        for job in state.jobs.values():
            startable = job.state == "Q" and not job.comment.startswith("Can Never Run") and job.indices is None
            # what took the place of a preempted job lasts longer than that takes to save
            startable = startable and not (job.why == "preempt" and self._is_ghost(job))
            if startable and running < state.slots:
                running += self._start(job)
        _finish_arrays(state)

    def _obey(self, state: State, order: str, job: Job) -> None:
        process = self.processes.get(job.id)
        if job.state == "E":
            return
        if process is None:
            if order in ("delete", "kill", "schedule"):
                _delete_waiting(state, job)
        elif order == "node":
            self._lose_node(state, job)
        elif order == "suspend":
            signal_session(process.pid, signal.SIGSTOP)
            job.state, job.substate, job.comment = "S", 45, "Not Running: Not enough free nodes available"
        elif order == "let go":
            job.state, job.substate = "R", 42
            signal_session(process.pid, signal.SIGCONT)
        elif order == "kill -9":
            signal_session(process.pid, signal.SIGKILL)
        elif order.startswith("signal "):
            signal_session(process.pid, signal.Signals[f"SIG{order.removeprefix('signal ')}"])
        elif order in ("kill", "memory"):
            if order == "kill":
                job.why, job.comment = "delete", f"{job.comment} and terminated by {USER}@{SERVER}"
            else:
                job.why = order
            signal_session(process.pid, signal.SIGKILL)
        else:  # delete, schedule, preempt
            self._term(state, job, order)

    def _term(self, state: State, job: Job, why: str) -> None:
        now, process = time.time(), self.processes.pop(job.id)
        self.ghosts.append((now + KILL_AFTER_S * state.factor, process))
        job.why, job.gone_at, job.state, job.substate = why, now + EXITING_S, "E", 51
        job.exit_status, ending = (-29, "exceeded resource walltime") if why == "walltime" else (0, "")
        if why in ("delete", "schedule"):
            ending = f"terminated by {'Scheduler' if why == 'schedule' else USER}@{SERVER}"
        job.comment += f" and {ending}" if ending else ""
        signal_session(process.pid, signal.SIGTERM)
        shutil.rmtree(self._tmpdir(job))  # before the job's processes have ended

    def _is_ghost(self, job: Job) -> bool:
        return any(ghost.args[-1] == str(self._script(job)) for _, ghost in self.ghosts)  # type: ignore[index]

    def _script(self, job: Job) -> Path:
        return self.root / "spool" / f"{job.id}.SC"

    def _tmpdir(self, job: Job) -> Path:
        return self.root / "spool" / f"pbs.{job.id}"

    def _lose_node(self, state: State, job: Job) -> None:
        """The server gives the node up and queues the job; its processes run on for a while."""
        ghost = self.processes.pop(job.id)
        self.ghosts.append((time.time() + GHOST_S * state.factor, ghost))
        job.state, job.substate, job.exit_status = "Q", 10, -20
        job.comment = "Not Running: Not enough free nodes available"

    def _start(self, job: Job) -> bool:
        """Start a job as a node does: a login shell around the script, in a session of its own."""
        folder = Path(job.output or self.root / "home")
        if not folder.is_dir():
            job.state, job.substate, job.hold, job.run_count, job.exit_status = "H", 20, "s", 21, -3
            job.comment = "job held, too many failed attempts to run"
            return False
        script = self._script(job)
        script.parent.mkdir(exist_ok=True)
        self._tmpdir(job).mkdir(exist_ok=True)
        script.write_text(job.script)
        script.chmod(0o700)
        with (folder / f"{job.id}.OU").open("ab") as log:
            self.processes[job.id] = subprocess.Popen(
                ["bash", "--noprofile", "--norc", "-c", '"$1"; exit $?', "-bash", str(script)],
                env=self._environment(job),
                cwd=self.root / "home",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                umask=0o077,
            )
        job.run_count += 1
        job.state, job.substate, job.why, job.gone_at = "R", 42, None, None
        job.started = time.time()
        job.comment = f"Job run at {time.ctime(job.started)} on ({SERVER}:ncpus=1)"
        return True

    def _environment(self, job: Job) -> dict[str, str]:
        """No PBS_WALLTIME, and nothing of the submitter's environment."""
        array = {} if job.array is None else {"PBS_ARRAY_ID": job.array, "PBS_ARRAY_INDEX": str(job.index)}
        nodefile = self.root / "spool" / f"{job.id}.nodes"
        nodefile.write_text(f"{SERVER}\n{SERVER}\n")
        return {
            "HOME": str(self.root / "home"),
            "PATH": f"{self.root / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "PBS_ENVIRONMENT": "PBS_BATCH",
            "PBS_JOBID": job.id,
            "PBS_JOBNAME": job.name,
            "PBS_NODEFILE": str(nodefile),
            "PBS_O_WORKDIR": job.workdir,
            "TMPDIR": str(self._tmpdir(job)),
            "OMP_NUM_THREADS": "1",
            **array,
            **job.environment,
        }

    def _watch(self, state: State, job: Job, now: float) -> None:
        if job.state == "E":
            if job.gone_at is not None and now > job.gone_at:
                _end(state, job)
            return
        process = self.processes[job.id]
        if now > job.started + seconds(job.walltime) + TERM_LATE_S * state.factor:
            self._term(state, job, "walltime")
        elif process.poll() is not None:
            signal_session(process.pid, signal.SIGKILL)
            del self.processes[job.id]
            job.exit_status = process.returncode if process.returncode >= 0 else 256 - process.returncode
            _end(state, job)


def _end(state: State, job: Job) -> None:
    if job.why == "preempt":
        job.state, job.substate, job.exit_status = "Q", 10, -11
        job.comment = "Not Running: Insufficient amount of resource: ncpus (R: 8 A: 0 T: 8)"
        return
    job.state, job.substate = ("F" if job.array is None else "X"), (92 if job.exit_status == 0 else 93)
    if job.why == "memory":
        job.exit_status, job.comment = -27, f"{job.comment} and exceeded resource mem"
    elif job.why in ("delete", "schedule"):
        job.substate = 91
    elif job.why is None:
        job.comment += " and finished" if job.exit_status == 0 else " and failed"
    _let_go(state, job)


def _let_go(state: State, ended: Job) -> None:
    """Release what waits for a job that has run, or end it if it waits in vain."""
    for job in state.jobs.values():
        if job.state != "H" or job.depend is None or ended.id not in job.depend[1]:
            continue
        succeeded = ended.exit_status == 0 and ended.substate != 91
        fires = {"afterany": True, "afterok": succeeded, "afternotok": not succeeded}
        if fires[job.depend[0]]:
            job.depend[1].remove(ended.id)
            if not job.depend[1]:
                job.state, job.substate, job.hold = "Q", 10, "n"
        else:
            job.state, job.substate, job.hold = "F", 92, "n"


def _delete_waiting(state: State, job: Job) -> None:
    """A job deleted in the queue; what waits for it is left held for ever."""
    if job.array is not None:  # an element: no run_count, but an exit status
        job.state, job.substate, job.exit_status, job.comment = "X", 92, 0, "Subjob finished"
    else:
        job.state, job.substate, job.comment = "F", 91, f"{job.comment} and terminated".strip()


def _finish_arrays(state: State) -> None:
    for job in state.jobs.values():
        elements = [element for element in state.jobs.values() if element.array == job.id]
        if job.state == "B" and all(element.over for element in elements):
            job.state, job.exit_status = "F", max((element.exit_status or 0 for element in elements), default=0)
            for element in elements:
                element.state = "F"


def session(sid: int) -> list[int]:
    """Return the processes of a session that still run."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == sid and fields[0] != "Z":
                pids.append(int(path.parent.name))
    return pids


def signal_session(sid: int, number: int) -> None:
    """PBS signals every process of the session, not only the job's first."""
    for pid in session(sid):
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def main() -> None:
    server = Server(Path(sys.argv[1]))
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    try:
        server.run()
    finally:
        server.stop()


if __name__ == "__main__":
    main()
