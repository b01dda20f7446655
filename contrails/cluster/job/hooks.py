"""The commands `on_done` and `on_failed` of the site profile, which report the end of a fold.

They get the names of the run and of the fold as two additional arguments, without a shell. Their failure does not
affect the fold.
"""

import subprocess
import time
from collections.abc import Sequence
from typing import Any, Literal

from contrails.progress import tell
from contrails.runs.folder import Fold

_PATIENCE_S = 60.0

Event = Literal["on_done", "on_failed"]
Hook = subprocess.Popen[bytes]


def start_hook(site: dict[str, Any], event: Event, fold: Fold) -> list[Hook]:
    """Start the command of an event; return an empty list if the site has none or it cannot be started.

    Args:
        site: the site profile as in `run.toml`.
        event: the event.
        fold: the fold that ended.
    """
    command = site.get(event)
    if not command:
        return []
    try:
        return [subprocess.Popen([*command, fold.run.name, fold.key], stdin=subprocess.DEVNULL)]
    except OSError as error:
        tell(f"warning: {event} of the site profile: {command[0]}: {error.strerror}")
        return []


def finish_hooks(hooks: Sequence[Hook]) -> None:
    """Wait up to a minute for the commands, then kill those that still run."""
    end = time.monotonic() + _PATIENCE_S
    for hook in hooks:
        try:
            hook.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            hook.kill()
            hook.wait()
