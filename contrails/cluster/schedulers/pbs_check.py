"""The checks of `contrails doctor` on PBS; they submit nothing."""

import re
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from contrails.cluster.schedulers.base import Check, Request
from contrails.cluster.schedulers.kerberos import ticket_check
from contrails.cluster.schedulers.pbs_script import spec_for
from contrails.cluster.schedulers.sites import Site
from contrails.errors import ClusterError
from contrails.submitit_pbs import client, script
from contrails.submitit_pbs.limits import read_nodes, shortage


def check(site: Site) -> Iterator[Check]:
    """Check the server, the queue, the requested resources, the nodes, the memory and the user's ticket."""
    yield from _server(site)
    select = spec_for(Path(), site, Request("ctdoctor", "builtins:print", ())).qsub
    yield _resources(site, select)
    lacking = shortage(select, read_nodes())
    advice = f"request less in the profile of {site.name}; `pbsnodes -av` lists the nodes"
    yield Check("a node for the job", lacking is None, lacking or "there is one", advice)
    has_memory = site.memory_gb is not None
    found = f"{site.memory_gb} GB" if has_memory else "the server's default, often 400 MB"
    yield Check("memory of a job", has_memory, found, f"set memory_gb in the profile of {site.name}")
    if (ticket := ticket_check(datetime.now())) is not None:
        yield ticket


def _server(site: Site) -> Iterator[Check]:
    """Check the attributes of the server and the queue."""
    try:
        said = client.server()
    except ClusterError as error:
        yield Check("server", False, str(error), "ask support")
        return
    starts = said.get("scheduling") != "False"
    yield Check("server", starts, "it starts jobs" if starts else "scheduling is off: no job starts", "ask support")
    keeps = said.get("job_history_enable") == "True"
    found = f"kept for {said.get('job_history_duration', 'a while')}" if keeps else "off, the default: PBS forgets "
    yield Check("job history", True, found + ("" if keeps else "jobs when they end; the run's files keep their ends"))
    queue = {}
    if (name := site.partition or said.get("default_queue")) is not None:
        try:
            queue = client.queue(name)
        except ClusterError as error:
            yield Check("queue", False, str(error), "list the queues with `qstat -Q`")
        else:
            takes = queue.get("enabled") == queue.get("started") == "True"
            found = f"{name} {'accepts and starts jobs' if takes else 'is stopped or disabled'}"
            yield Check("queue", takes, found, "ask support")
    limits = re.findall(r"u:PBS_GENERIC=(\d+)", f"{said.get('max_queued')} {queue.get('max_queued')}")
    if limits:
        most = min(map(int, limits))
        found = f"{most} per user, including running and held jobs; a fold has two, as its next job is held"
        advice = f'with next_job = "at_warning" in the profile of {site.name} a fold has two only when it hands over'
        yield Check("limit of jobs", most > 1, found, advice)


def _resources(site: Site, options: Sequence[str]) -> Check:
    """Check that the server knows the requested resources; qsub refuses unknown ones."""
    names = [name for name in script.select_of(options) if name not in ("ncpus", "mem", "mpiprocs")]
    try:
        unknown = [name for name in names if not client.has_resource(name)]
    except ClusterError as error:
        return Check("resources", True, f"not known: {error}")
    if unknown:
        wrong = f"PBS knows no resource {', '.join(unknown)}: qsub would refuse the job"
        from_key = "num_gpus and [resources]" if "ngpus" in unknown else "[resources]"
        return Check("resources", False, wrong, f"change {from_key} in the profile of {site.name}; see `pbsnodes -av`")
    return Check("resources", True, ", ".join(["cores and memory", *names]))
