"""An image for Charliecloud, as a folder: a shell, a few commands and Python, and none of the scheduler's commands.

Its libraries and its Python are those of this machine, bound into it, so that it is made in no time.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMANDS = ("sh", "bash", "cat", "env", "mkdir", "mkfifo", "rm", "sleep")


def why_not() -> str | None:
    """Return why no container can run here, or None."""
    if shutil.which("ch-run") is None:
        return "ch-run not found: python tests/cluster/slurm_cluster.py install (Debian)"
    done = subprocess.run(["unshare", "--user", "true"], capture_output=True, text=True, check=False)
    return f"no user namespaces: {done.stderr.strip()}" if done.returncode else None


def make_image(folder: Path) -> dict[str, Any]:
    """Make the image; return the keys of a site profile that runs jobs in it."""
    for name in ("dev", "etc", "home", "proc", "root", "sys", "tmp", "usr/bin", "usr/lib", "usr/lib64"):
        (folder / name).mkdir(parents=True)
    for name in ("passwd", "group", "hosts", "resolv.conf"):  # ch-run binds the machine's
        (folder / "etc" / name).touch()
    for name in ("bin", "lib", "lib64"):
        (folder / name).symlink_to(f"usr/{name}")
    for name in COMMANDS:
        shutil.copy(os.path.realpath(str(shutil.which(name))), folder / "usr/bin" / name)
    return profile(folder, ("/usr/lib", "/usr/lib64"))


def profile(image: Path, binds: tuple[str, ...] = ()) -> dict[str, Any]:
    """Put this Python into an image; return the keys of a site profile that runs jobs in it."""
    (image / "ch").mkdir(exist_ok=True)
    (image / "ch/environment").write_text("PATH=/opt/python/bin:/usr/bin:/bin\n")
    python = image / "opt/python/bin/python3"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    more = sorted({*binds, sys.prefix, sys.base_prefix, *packages})
    return {"container": str(image), "container_runtime": "charliecloud", "container_binds": more}
