"""What qstat prints about a job."""

import json
import time
from typing import Any

from fake_pbs.store import SERVER, USER, Job, State


def attributes(job: Job, state: State) -> dict[str, Any]:
    """Return the attributes of a job in qstat's order; those that do not apply are missing, not empty."""
    waiting = [other.id for other in state.jobs.values() if other.depend is not None and job.id in other.depend[1]]
    values: dict[str, Any] = {
        "Job_Name": job.name,
        "Job_Owner": f"{USER}@{SERVER}",
        "job_state": job.state,
        "queue": job.queue,
        "server": SERVER,
        "array": "True" if job.indices is not None else None,
        "array_indices_submitted": job.indices,
        "depend": _depend(job, waiting),
        "Hold_Types": job.hold,
        "Rerunable": "True",
        "Resource_List": {"select": job.select, "walltime": job.walltime},
        "stime": time.ctime(job.started) if job.started else None,
        "substate": job.substate,
        "ctime": time.ctime(job.created),
        "exec_host": f"{SERVER}/0" if job.run_count else None,
        "Variable_List": {"PBS_O_HOME": "/home/user1", **job.environment},
        "comment": job.comment or None,
        "run_count": job.run_count or None,
        "Exit_status": job.exit_status,
        "array_id": job.array,
        "array_index": job.index,
        "Submit_arguments": job.arguments,
    }
    return {key: value for key, value in values.items() if value is not None}


def _depend(job: Job, waiting: list[str]) -> str | None:
    if job.depend is not None:
        return f"{job.depend[0]}:{':'.join(f'{other}@{SERVER}' for other in job.depend[1])}"
    return ",".join(f"beforenotok:{other}@{SERVER}" for other in waiting) or None


def as_dsv(jobs: list[Job], state: State) -> str:
    return "".join(f"Job Id: {job.id}|{'|'.join(_flat(attributes(job, state)))}\n" for job in jobs)


def as_json(jobs: list[Job], state: State) -> str:
    """The real bug #2672: of several jobs only the first is printed."""
    answer: dict[str, Any] = {"timestamp": int(time.time()), "pbs_version": "23.06.06", "pbs_server": SERVER}
    if jobs:
        answer["Jobs"] = {jobs[0].id: attributes(jobs[0], state)}
    return json.dumps(answer, indent="\t", separators=(",", ":\t")) + "\n"


def _flat(values: dict[str, Any]) -> list[str]:
    fields = []
    for key, value in values.items():
        if key == "Variable_List":
            fields.append(f"{key}={','.join(f'{name}={text}' for name, text in value.items())}")
        elif isinstance(value, dict):
            fields += [f"{key}.{name}={text}" for name, text in value.items()]
        else:
            fields.append(f"{key}={value}")
    return fields
