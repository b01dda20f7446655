"""Containers: the command that starts the Python of a job, in the image that the site names or without one.

`container/enter.sh` starts the image on the node and serves calls of the scheduler's commands from inside. It is part
of the frozen code of the run, which every job has on its PYTHONPATH, and needs no Python outside of the image.
"""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from contrails.cluster.environment import shared_python
from contrails.errors import RecipeError, choices

if TYPE_CHECKING:
    from contrails.cluster.schedulers.base import Request
    from contrails.cluster.schedulers.sites import Site

IMAGE, BIND = "{image}", "{bind}"
"""What a command line of a runtime has for the image, and for each folder that the container sees."""

PYTHON = "python3"
"""The interpreter of an image, on its PATH."""

ENTERED = "CONTRAILS_CONTAINER"
"""Variable that is set in a container of a job."""

_ENTER = '"$PYTHONPATH"/contrails/cluster/schedulers/container/enter.sh'


@dataclass(frozen=True)
class Runtime:
    """A program that runs a command in an image: its command line, and its words for GPUs of NVIDIA and AMD."""

    command: str
    nvidia: str = ""
    amd: str = ""
    takes_names: bool = False
    """Whether an image may be a name in a store, rather than a file or a folder."""


RUNTIMES = {
    "apptainer": Runtime("apptainer exec {gpus} --bind={bind} {image}", "--nv", "--rocm"),
    "singularity": Runtime("singularity exec {gpus} --bind={bind} {image}", "--nv", "--rocm"),
    # an image has the libraries of the GPU already: `ch-fromhost --nvidia`
    "charliecloud": Runtime("ch-run --unset-env=PATH --bind={bind} {image} --"),
    # locks and heartbeats compare process ids, and a killed job must take its container along
    "podman": Runtime(
        "podman run --rm --interactive --pid=host --network=host --ipc=host --userns=keep-id --cgroups=disabled "
        "--security-opt=label=disable {gpus} --volume={bind}:{bind} {image}",
        "--device=nvidia.com/gpu=all",
        "--device=/dev/kfd --device=/dev/dri",
        takes_names=True,
    ),
}
"""Runtimes by their name in a site profile, which may give a command line instead."""


def python(site: "Site", request: "Request") -> str:
    """Return the shell words that start Python in a job of the site; the script exports the request's environment.

    Raises:
        RecipeError: a folder that a container would have to see has a colon or a comma in its path.
    """
    if site.container is None:
        return interpreter(site)
    runtime = runtime_of(site)
    options = ["--site", site.name, "--image", site.container]
    for path in _bound(request.paths, map(Path, site.container_binds)):
        if ":" in str(path) or "," in str(path):
            raise RecipeError(
                f"container of the site {site.name}: expected folders without colon and comma, found {path}; move the "
                "data, or the runs (CONTRAILS_RUNS), to another folder"
            )
        options += ["--bind", str(path)]
    if site.stage_dir is not None:
        options += ["--stage", str(site.stage_dir)]
    if site.num_gpus and runtime.nvidia:
        options += ["--nvidia", runtime.nvidia, "--amd", runtime.amd]
    return f"bash {_ENTER} {shlex.join([*options, '--', runtime.command])} {interpreter(site)}"


def interpreter(site: "Site") -> str:
    """Return the shell word that starts Python where a job of the site runs, in the container if there is one."""
    return shlex.quote(shared_python()) if site.container is None else PYTHON


def runtime_of(site: "Site") -> Runtime:
    """Return the runtime of a site with a container."""
    known = RUNTIMES.get(site.container_runtime)
    return Runtime(site.container_runtime, takes_names=True) if known is None else known


def require_runtime(text: str) -> None:
    """Check the `container_runtime` of a profile.

    Raises:
        ValueError: it is neither a known name nor a command line for an image.
    """
    if text not in RUNTIMES and IMAGE not in text.partition(" ")[2]:
        raise ValueError(
            f"container_runtime '{text}': {choices(text, RUNTIMES)}; or a command line with the word {IMAGE}, such as "
            f"'myruntime run --mount={BIND} {IMAGE}'"
        )


def require_image(site: "Site") -> str | None:
    """Return the site's image with an absolute path, after checking that it exists here.

    A reference such as docker://host/name, and the name of an image in a runtime's store, are returned unchanged.

    Raises:
        RecipeError: there is no such file or folder.
    """
    image = site.container
    if image is None or "://" in image or (runtime_of(site).takes_names and not image.startswith(("/", "."))):
        return image
    path = Path(image).expanduser().absolute()
    if not path.exists():
        raise RecipeError(
            f"container of the site {site.name}: expected an image at {path}, found none; give an absolute path in the "
            "profile, or build one from envs/contrails.def or envs/Dockerfile (see envs/README.md)"
        )
    return str(path)


def _bound(paths: Iterable[Path], folders: Iterable[Path]) -> list[Path]:
    """Return `folders`, and those through which paths can be reached, each once, without those below others.

    A folder of the nodes need not exist here, so `folders` are taken as they are.
    """
    wanted = set(folders)
    for path in paths:
        for each in (path.absolute(), path.resolve()):  # a link and its target
            wanted.add(each if each.is_dir() else each.parent)
    wanted.discard(Path("/"))  # no container could see the node's root under its own path
    return sorted(path for path in wanted if not any(parent in wanted for parent in path.parents))
