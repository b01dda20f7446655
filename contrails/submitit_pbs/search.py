"""Searching PBS for the links of a job, including one whose submitter was killed before it could record it.

An id alone does not identify a job, since a server that has lost its state reuses ids. So the name must match too.
"""

import re
from collections.abc import Mapping

from contrails.submitit_pbs import client
from contrails.submitit_pbs.chain import Rows, current_id, links_of, successor_of
from contrails.submitit_pbs.script import FIRST_ID, LINK
from contrails.submitit_pbs.states import ENDED


def first_id_of(job_id: str, attributes: Mapping[str, str]) -> str:
    """Return the id of a link's job, which is that of its first link.

    >>> first_id_of("9.h", {"Submit_arguments": "-N a -v SUBMITIT_PBS_FIRST_ID=7.h,SUBMITIT_PBS_LINK=2 a.sh"})
    '7.h'
    """
    found = re.search(rf"{FIRST_ID}=([^,\s]+)", attributes.get("Submit_arguments", ""))
    return found[1] if found else job_id


def element_id(array: str, index: str | int) -> str:
    """Return the id of an array's element, without brackets, since it is used in file names.

    >>> element_id("22[].host", 3)
    '22.host_3'
    """
    return f"{array.replace('[]', '')}_{index}"


def pbs_id(job_id: str) -> str:
    """Return PBS's id of a job or of an array's element, from our id.

    >>> pbs_id("22.host_3")
    '22[3].host'
    """
    return re.sub(r"^(\d+)\.(.+)_(\d+)$", r"\1[\3].\2", job_id)


def agrees(name: str | None, attributes: Mapping[str, str]) -> bool:
    """Return whether these are attributes of a job called `name`; old servers shorten names, and None matches any."""
    return name is None or name.startswith(attributes.get("Job_Name", ""))


def living_links(first_id: str, name: str) -> dict[str, dict[str, str]]:
    """Return the waiting or running links of a job, newest first, with their attributes.

    Raises:
        Unanswered: the server is down.
    """
    found = [one for one in client.named(name, ended=False) if first_id_of(*one) == first_id]
    return dict(sorted(found, key=lambda one: _number(one[1]), reverse=True))


def next_link(rows: Rows, job_id: str, first_id: str, name: str | None) -> str | None:
    """Return the link that continues after `job_id`; None if there is none.

    Raises:
        Unanswered: the chain does not name it, and the server is down.
    """
    started, known = current_id(rows, ""), links_of(rows, first_id)
    if not started:
        return None  # only a link that has started submits another
    if job_id in known and known.index(started) > known.index(job_id):
        return started
    recorded = successor_of(rows, job_id)
    if recorded is not None or name is None:
        return recorded
    return next((link for link in living_links(first_id, name) if link not in known and link != job_id), None)


def links_to_delete(rows: Rows, first_id: str, name: str | None) -> list[str]:
    """Return the links of a job that PBS has, newest first.

    They must be deleted in this order: deleting a running link would start the next one, which waits for it.

    Raises:
        Unanswered: the server is down.
    """
    living = {} if name is None else living_links(first_id, name)
    current = current_id(rows, first_id)
    written = [link for link in (successor_of(rows, current), current) if link is not None and link not in living]
    known = client.query(written) if written else {}  # links that have moved to another server
    mine = [link for link in written if link in known and agrees(name, known[link])]
    return [*living, *(link for link in mine if known[link]["job_state"] not in ENDED)]


def _number(attributes: Mapping[str, str]) -> int:
    found = re.search(rf"{LINK}=(\d+)", attributes.get("Submit_arguments", ""))
    return int(found[1]) if found else 1
