"""Kerberos: how long the user's ticket is valid. Where home folders need one, files and jobs fail without it."""

import re
import shutil
import subprocess
from datetime import datetime

from contrails.cluster.schedulers.base import Check

_LEAST_H = 1.0


def ticket_check(now: datetime) -> Check | None:
    """Check that the ticket is valid for an hour; None if there is no Kerberos, or no ticket was ever requested."""
    if shutil.which("klist") is None:
        return None
    answer = subprocess.run(["klist"], capture_output=True, text=True, timeout=20, check=False)
    ends = parse_klist(answer.stdout)
    if ends is None:
        return None
    hours = (ends - now).total_seconds() / 3600
    found = f"valid for {hours:.1f} h more" if hours > 0 else "has expired"
    return Check("Kerberos ticket", hours >= _LEAST_H, found, "renew it with `kinit`; a new one lasts about 10 h")


def parse_klist(text: str) -> datetime | None:
    """Return when the ticket-granting ticket expires.

    >>> parse_klist("11/21/26 10:00:00  11/21/26 20:00:00  krbtgt/META@META")
    datetime.datetime(2026, 11, 21, 20, 0)
    """
    found = re.search(r"^\S+ \S+\s+(\S+ \S+)\s+krbtgt/", text, re.MULTILINE)
    for form in ("%m/%d/%y %H:%M:%S", "%m/%d/%Y %H:%M:%S", "%d.%m.%Y %H:%M:%S", "%Y-%m-%d %H:%M:%S"):
        try:
            return datetime.strptime(found[1], form) if found else None
        except ValueError:
            continue
    return None
