"""Kerberos: how long the user's ticket lasts. Where home folders need one, neither files nor jobs go on without it."""

import re
import shutil
import subprocess
from datetime import datetime

from contrails.cluster.schedulers.base import Check

_LEAST_H = 1.0


def ticket_check(now: datetime) -> Check | None:
    """Return whether the ticket lasts for an hour; None where there is no Kerberos, or no ticket was ever asked for."""
    if shutil.which("klist") is None:
        return None
    answer = subprocess.run(["klist"], capture_output=True, text=True, timeout=20, check=False)
    ends = parse_klist(answer.stdout)
    if ends is None:
        return None
    hours = (ends - now).total_seconds() / 3600
    found = f"lasts for {hours:.1f} h more" if hours > 0 else "has ended"
    return Check("Kerberos ticket", hours >= _LEAST_H, found, "renew it with `kinit`; a new one lasts for about 10 h")


def parse_klist(text: str) -> datetime | None:
    """Return when the ticket-granting ticket ends.

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
