"""qsub, qstat, qdel, qselect, qalter, qmgr, qrerun, qsig and pbsnodes: `python -m fake_pbs.commands ROOT COMMAND ...`

Without a history, as by default, a job that has ended is unknown, and -x answers nothing, of running jobs neither.
"""

import getopt
import os
import re
import shlex
import sys
import time
from pathlib import Path

from fake_pbs.attributes import as_dsv, as_json
from fake_pbs.store import SERVER, USER, Job, State, Store

RESOURCES = {"ncpus", "mem", "mpiprocs"}


class Fails(Exception):
    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self.code, self.message = code, message


def main() -> None:
    store, command, arguments = Store(Path(sys.argv[1])), sys.argv[2], sys.argv[3:]
    with (store.root / "calls.log").open("a") as log:
        log.write(f"{time.time():.3f} {shlex.join([command, *arguments])}\n")
    try:
        with store.open() as state:
            lost = time.time() < state.down_until or _take(state, "lose_requests", command)
            output, code = ("", 0) if lost else COMMANDS[command](state, arguments)
            lost = lost or _take(state, "lose_replies", command)
        if lost:
            raise Fails(255 if command == "qstat" else 162, f"cannot connect to server {SERVER} (errno=15010)")
    except Fails as error:
        sys.exit(_fail(command, error))
    print(output, end="")
    sys.exit(code)


def _take(state: State, what: str, command: str) -> bool:
    left = getattr(state, what)
    if command != "qsub" or left == 0:
        return False
    setattr(state, what, left - 1)
    return True


def _fail(command: str, error: Fails) -> int:
    print(f"{command}: {error.message}", file=sys.stderr)
    return error.code


def qsub(state: State, arguments: list[str]) -> tuple[str, int]:
    try:
        pairs, rest = getopt.getopt(arguments, "N:l:q:A:P:a:r:j:k:o:e:W:v:J:M:m:p:S:h")
    except getopt.GetoptError as error:
        raise Fails(2, f"{error}\nusage: qsub [-a date_time] ...") from error
    options = dict(pairs)
    limits = dict(value.split("=", 1) for option, value in pairs if option == "-l")
    waits = dict(value.split("=", 1) for option, value in pairs if option == "-W")
    _check(state, options, limits)
    if not Path(os.environ.get("TMPDIR", "/tmp")).is_dir():
        raise Fails(1, "mkstemp: No such file or directory")
    script = Path(rest[0]).read_text() if rest else sys.stdin.read()
    number, state.next_id = state.next_id, state.next_id + 1
    job = Job(
        id=f"{number}.{SERVER}",
        name=options.get("-N", "STDIN"),
        arguments=shlex.join(arguments),
        script=script,
        output=options.get("-o", ""),
        select=limits.get("select", "1:ncpus=1"),
        walltime=limits.get("walltime", "00:05:00"),
        environment=_variables(options.get("-v", "")),
    )
    if "depend" in waits:
        _depend(state, job, waits["depend"])
    if "-h" in options:
        job.state, job.substate, job.hold = "H", 20, "u"
    if "-a" in options:  # the moment is not looked at
        job.state, job.substate = "W", 30
    if job.select.startswith("1:ncpus=64"):
        job.comment = "Can Never Run: Insufficient amount of resource: ncpus (R: 64 A: 8 T: 8)"
    if "-J" in options:
        return _array(state, job, number, options["-J"])
    state.jobs[job.id] = job
    return f"{job.id}\n", 0


def _check(state: State, options: dict[str, str], limits: dict[str, str]) -> None:
    if not re.fullmatch(r"[^\s.]\S{0,229}", options.get("-N", "STDIN")):
        raise Fails(2, "illegal -N value\nusage: qsub [-a date_time] ...")
    if options.get("-q", "workq") != "workq":
        raise Fails(170, "Unknown queue")
    for resource, value in re.findall(r":(\w+)=([^:]*)", limits.get("select", "")):
        if resource not in RESOURCES | set(state.resources):
            raise Fails(187, f"Unknown resource: {resource}")
        if resource == "mem" and not re.fullmatch(r"\d+[kmgt]?b", value):
            raise Fails(166, "Illegal attribute or resource value select.mem")
    if not re.fullmatch(r"[\d:]+", limits.get("walltime", "1")):
        raise Fails(166, "Illegal attribute or resource value Resource_List.walltime")
    if state.max_queued and sum(not job.over for job in state.jobs.values()) >= state.max_queued:
        raise Fails(38, "would exceed queue generic's per-user limit")


def _variables(text: str) -> dict[str, str]:
    return dict(pair.replace('"', "").replace("'", "").split("=", 1) for pair in text.split(",") if pair)


def _depend(state: State, job: Job, text: str) -> None:
    kind, *others = text.split(":")
    if "[" in text or kind not in ("afternotok", "afterany", "afterok"):
        raise Fails(2, "illegal -W value\nusage: qsub [-a date_time] ...")
    # a dependency on an unknown job is dropped without a word
    known = [other for other in others if other in state.jobs and not state.jobs[other].over]
    if known:
        job.depend = (kind, known)
        job.state, job.substate, job.hold = "H", 22, "s"


def _array(state: State, job: Job, number: int, text: str) -> tuple[str, int]:
    found = re.fullmatch(r"(\d+)-(\d+)(%\d+)?", text)
    if found is None or int(found[2]) <= int(found[1]):
        raise Fails(2, "illegal -J value\nusage: qsub [-a date_time] ...")
    parent = f"{number}[].{SERVER}"
    for index in range(int(found[1]), int(found[2]) + 1):
        element = Job(**{**vars(job), "id": f"{number}[{index}].{SERVER}", "array": parent, "index": index})
        state.jobs[element.id] = element
    job.id, job.indices, job.state, job.substate = parent, text, "B", 70
    state.jobs[parent] = job
    return f"{parent}\n", 0


def qstat(state: State, arguments: list[str]) -> tuple[str, int]:
    pairs, ids = getopt.getopt(arguments, "xftaQBF:")
    options, found, code = dict(pairs), [], 0
    if "-B" in options:
        history, limit = state.history, f"|max_queued=[u:PBS_GENERIC={state.max_queued}]" if state.max_queued else ""
        return f"Server: {SERVER}|server_state=Active|scheduling=True{limit}|job_history_enable={history}\n", 0
    if "-Q" in options:
        if ids != ["workq"]:
            raise Fails(170, f"Unknown queue {ids[0]}")
        return "Queue: workq|queue_type=Execution|enabled=True|started=True\n", 0
    if "-x" in options and not state.history:
        for job_id in ids:
            _fail("qstat", Fails(0, f"PBS is not configured to maintain job history {job_id}"))
        return "", 0
    for job_id in ids:
        job = state.jobs.get(job_id)
        if job is None or (job.over and not state.history):
            code = _fail("qstat", Fails(153, f"Unknown Job Id {job_id}"))
        elif job.over and "-x" not in options:
            code = code or _fail("qstat", Fails(35, f"{job_id} Job has finished, use -x or -H"))
        else:
            found.append(job)
    if not ids:
        found = [job for job in state.jobs.values() if _is_listed(job, options)]
    if options.get("-F") == "json":
        return as_json(found, state), code
    if "-f" in options:
        return as_dsv(found, state), code
    return "".join(f"{job.id:<19} {job.name:<16} {USER} 0 {job.state} {job.queue}\n" for job in found), code


def _is_listed(job: Job, options: dict[str, str]) -> bool:
    return (not job.over or "-x" in options) and (job.array is None or "-t" in options)


def qdel(state: State, arguments: list[str]) -> tuple[str, int]:
    pairs, ids = getopt.getopt(arguments, "W:")
    code = 0
    for job_id in ids:
        job = state.jobs.get(job_id)
        if job is None or (job.over and not state.history):
            code = _fail("qdel", Fails(153, f"Unknown Job Id {job_id}"))
        elif job.over:
            code = _fail("qdel", Fails(35, f"Job has finished {job_id}"))
        elif job.indices is not None:
            state.orders += [("delete", element.id) for element in state.jobs.values() if element.array == job_id]
        else:
            state.orders.append(("kill" if ("-W", "force") in pairs else "delete", job_id))
    return "", code


def qselect(state: State, arguments: list[str]) -> tuple[str, int]:
    pairs, _ = getopt.getopt(arguments, "xN:u:")
    options = dict(pairs)
    if "-x" in options and not state.history:
        _fail("qselect", Fails(0, "PBS is not configured to maintain job history"))
        return "", 0
    ids = [
        job.id
        for job in state.jobs.values()
        if options.get("-N", job.name) == job.name
        and options.get("-u", USER) == USER
        and job.array is None
        and (not job.over or "-x" in options)
    ]
    return "".join(f"{job_id}\n" for job_id in ids), 0


def qalter(state: State, arguments: list[str]) -> tuple[str, int]:
    pairs, ids = getopt.getopt(arguments, "l:N:")
    for job_id in ids:
        job = state.jobs.get(job_id)
        if job is None:
            raise Fails(153, f"Unknown Job Id {job_id}")
        for option, value in pairs:
            if option == "-l":
                walltime = value.removeprefix("walltime=")
                if job.state == "R" and seconds(walltime) > seconds(job.walltime):
                    raise Fails(159, f"Unauthorized Request  {job_id}")
                job.walltime = walltime
            else:
                job.name = value
    return "", 0


def qsig(state: State, arguments: list[str]) -> tuple[str, int]:
    pairs, ids = getopt.getopt(arguments, "s:")
    for job_id in ids:
        if job_id not in state.jobs:
            raise Fails(153, f"Unknown Job Id {job_id}")
        if state.jobs[job_id].state != "R":
            raise Fails(168, f"Request invalid for state of job {job_id}")
        state.orders.append((f"signal {dict(pairs)['-s'].removeprefix('SIG')}", job_id))
    return "", 0


def qrerun(_state: State, arguments: list[str]) -> tuple[str, int]:
    """A user may not have a job of their own run again."""
    raise Fails(159, f"Unauthorized Request  {arguments[-1]}")


def qmgr(state: State, arguments: list[str]) -> tuple[str, int]:
    pairs, _ = getopt.getopt(arguments, "c:")
    name = dict(pairs)["-c"].removeprefix("list resource ")
    if name not in RESOURCES | set(state.resources):
        raise Fails(1, f"qmgr obj={name} svr=default: Unknown resource\nqmgr: Error (15035) returned from server")
    return f"Resource {name}\n    type = long\n    flag = hn\n\n", 0


def pbsnodes(state: State, _arguments: list[str]) -> tuple[str, int]:
    nodes = [{"Name": SERVER, "state": state.node_state} | state.node, *state.more_nodes]
    return "".join(f"{'|'.join(map(_field, node.items()))}\n" for node in nodes), 0


def _field(item: tuple[str, str]) -> str:
    name, value = item
    return f"{name}={value}" if name in ("Name", "state") else f"resources_available.{name}={value}"


def seconds(walltime: str) -> float:
    total = 0.0
    for part in walltime.split(":"):
        total = total * 60 + float(part)
    return total


COMMANDS = {
    function.__name__: function for function in (qsub, qstat, qdel, qselect, qalter, qmgr, qsig, qrerun, pbsnodes)
}

if __name__ == "__main__":
    main()
