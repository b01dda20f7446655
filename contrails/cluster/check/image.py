"""The checks of `contrails doctor` on the container of a site: its image, its runtime, and the package in it."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import contrails
from contrails.cluster.queue.freeze import package_folder
from contrails.cluster.schedulers.base import Check, Request
from contrails.cluster.schedulers.containers import ENTERED, python, require_image, runtime_of
from contrails.cluster.schedulers.sites import Site
from contrails.errors import RecipeError

DISTRIBUTION = "contrails-hpc"
BUILD = "build the image again from envs/contrails.def or envs/Dockerfile: see envs/README.md"

_TIMEOUT_S = 300
_ASK = (
    "from importlib import metadata\n"
    "found = {d.name: d.version for d in metadata.distributions() if d.name}\n"
    f"print('version:' + found.get('{DISTRIBUTION}', ''))"
)


def check_image(site: Site) -> Iterator[Check]:
    """Yield the checks of the site's container on a login node; where the runtime is at hand, Python runs in it."""
    if site.container is None:
        return
    try:
        image = require_image(site)
    except RecipeError as error:
        yield Check("container", False, str(error), "correct `container` in the site profile")
        return
    yield Check("container", True, str(image))
    command = runtime_of(site).command.split()[0]
    here, sets_up = shutil.which(command) is not None, bool(site.prologue or site.environment)
    found = command if here else f"no command {command} on this machine"
    found += "; a job has run prologue and environment before, see --job" if sets_up and not here else ""
    advice = f"load its module in prologue; check a node with `contrails doctor --site {site.name} --job`"
    yield Check("container runtime", here or sets_up, found, advice)
    if here and str(image).startswith("/"):
        yield _started(site.model_copy(update={"container": image, "stage_dir": None}))


def check_package() -> Iterator[Check]:
    """Yield the check of the package in the container that this process runs in; nothing outside of one."""
    if ENTERED not in os.environ:
        return
    try:
        yield judge_package(version(DISTRIBUTION))
    except PackageNotFoundError:
        yield judge_package("")


def judge_package(found: str) -> Check:
    """Compare the version of the package in an image, empty if it has none, with the one that runs."""
    expected = f"expected {DISTRIBUTION} {contrails.__version__} in the image, found "
    holds = found == contrails.__version__
    said = f"{DISTRIBUTION} {found}" if holds else expected + (found or "none")
    return Check("package in the container", holds, said, BUILD)


def _started(site: Site) -> Check:
    """Run Python in the image on this machine."""
    folder = package_folder().parent
    line = f"{python(site, Request('ctdoctor', 'builtins:print', (), paths=(folder,)))} -c {shlex.quote(_ASK)}"
    try:
        done = subprocess.run(
            ["bash", "-c", line],
            env=dict(os.environ) | {"PYTHONPATH": str(folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check("package in the container", False, f"no answer within {_TIMEOUT_S} s", BUILD)
    answers = [line for line in done.stdout.splitlines() if line.startswith("version:")]
    if done.returncode == 0 and answers:
        return judge_package(answers[-1].removeprefix("version:"))
    found = " | ".join(done.stderr.strip().splitlines()[-3:]) or f"exit code {done.returncode}"
    return Check("package in the container", False, found, BUILD)
