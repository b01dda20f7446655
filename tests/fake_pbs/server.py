"""The scheduler and the node: starts jobs, ends them, lets go what waits for them. `python -m fake_pbs.server ROOT`"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from fake_pbs.commands import seconds
from fake_pbs.store import SERVER, USER, Job, State, Store

CYCLE_S = 0.05
TERM_LATE_S, KILL_AFTER_S, GHOST_S = 4.0, 12.0, 23.0
"""Measured: TERM 2.5 to 7 s after the walltime, KILL 10 to 18 s after TERM, a ghost's 23 s after the requeue."""


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
            if job.state == "R":
                self._watch(state, job, now)
        for when, ghost in self.ghosts:
            if now > when:
                signal_session(ghost.pid, signal.SIGKILL)
        running = sum(job.state == "R" for job in state.jobs.values())
        for job in state.jobs.values():
            startable = job.state == "Q" and not job.comment.startswith("Can Never Run") and job.indices is None
            if startable and running < state.slots:
                running += self._start(job)
        _finish_arrays(state)

    def _obey(self, state: State, order: str, job: Job) -> None:
        process = self.processes.get(job.id)
        if process is None:
            if order in ("delete", "kill", "schedule"):
                _delete_waiting(state, job)
        elif order == "node":
            self._lose_node(state, job)
        elif order == "kill -9":
            signal_session(process.pid, signal.SIGKILL)
        elif order.startswith("signal "):
            signal_session(process.pid, signal.Signals[f"SIG{order.removeprefix('signal ')}"])
        elif order in ("kill", "memory"):
            job.why = "delete" if order == "kill" else order
            signal_session(process.pid, signal.SIGKILL)
        else:  # delete, schedule, preempt
            self._term(state, job, order)

    def _term(self, state: State, job: Job, why: str) -> None:
        now = time.time()
        job.why, job.term_at, job.kill_at = why, now, now + KILL_AFTER_S * state.factor
        signal_session(self.processes[job.id].pid, signal.SIGTERM)

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
        script = self.root / "spool" / f"{job.id}.SC"
        script.parent.mkdir(exist_ok=True)
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
        job.state, job.substate, job.why, job.term_at, job.kill_at = "R", 42, None, None, None
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
            "OMP_NUM_THREADS": "1",
            **array,
            **job.environment,
        }

    def _watch(self, state: State, job: Job, now: float) -> None:
        process = self.processes[job.id]
        late = seconds(job.walltime) + TERM_LATE_S * state.factor
        if job.why is None and now > job.started + late:
            self._term(state, job, "walltime")
        if job.kill_at is not None and now > job.kill_at:
            signal_session(process.pid, signal.SIGKILL)
        # once TERM was sent the shell dies at once, but the job is over only when its session is empty
        if process.poll() is None or (job.term_at is not None and session(process.pid)):
            return
        signal_session(process.pid, signal.SIGKILL)
        del self.processes[job.id]
        _end(state, job, process.returncode)


def _end(state: State, job: Job, returncode: int) -> None:
    code = returncode if returncode >= 0 else 256 - returncode
    if job.why == "preempt":
        job.state, job.substate, job.exit_status = "Q", 10, -11
        job.comment = "Not Running: Insufficient amount of resource: ncpus (R: 8 A: 0 T: 8)"
        return
    job.state, job.substate = ("F" if job.array is None else "X"), (92 if code == 0 else 93)
    job.exit_status, ending = code, "and finished" if code == 0 else "and failed"
    if job.why == "walltime":
        job.exit_status, job.substate, ending = -29, 93, "and exceeded resource walltime"
    elif job.why == "memory":
        job.exit_status, job.substate, ending = -27, 93, "and exceeded resource mem"
    elif job.why is not None:
        who = "Scheduler" if job.why == "schedule" else USER
        job.substate, ending = 91, f"and terminated by {who}@{SERVER}"
    job.comment += f" {ending}"
    _let_go(state, job)


def _let_go(state: State, ended: Job) -> None:
    """Release what waits for a job that has run, or end it if it waits in vain."""
    for job in state.jobs.values():
        if job.state != "H" or job.depend is None or ended.id not in job.depend[1]:
            continue
        fires = {"afterany": True, "afterok": ended.exit_status == 0, "afternotok": ended.exit_status != 0}
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
