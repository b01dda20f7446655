"""Jobs in a container: what it adds to a start, and a training that is killed more than fifty times inside of one.

On a Slurm cluster of the tests' own (root, and the packages of tests/cluster/slurm_cluster.py), with Charliecloud and a
Debian that debootstrap makes. That Debian has none of the scheduler's commands. Its Python is this one, bound into it.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from table import Result, left_out, show

import contrails
from contrails.cluster.check.drill import drill, make_data, result_of, small_recipe
from contrails.cluster.schedulers.base import Request
from contrails.cluster.schedulers.containers import python
from contrails.cluster.schedulers.sites import Site
from contrails.cluster.submit.create import create_run
from contrails.cluster.submit.folds import submit_folds
from contrails.recipe.reading import parse
from contrails.runs.folder import Run

TESTS = Path(__file__).parents[2] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "cluster")]

import image_folder  # noqa: E402
from slurm_cluster import why_not  # noqa: E402
from slurm_site import SlurmSite, only_cluster  # noqa: E402

KILLS = 54
_STARTS = 15
_LIBRARIES = "libbz2-1.0,libexpat1,libffi8,liblzma5,libreadline8,libsqlite3-0,libssl3,zlib1g"


def main() -> None:
    missing = why_not() or image_folder.why_not()
    if missing is not None:
        show("container", [left_out("a drill inside of a container", missing)])
        return
    with tempfile.TemporaryDirectory() as name, only_cluster() as cluster:
        folder = Path(name)
        cluster.start()
        os.environ |= {"SLURM_CONF": str(cluster.conf), "CONTRAILS_RUNS": str(folder / "runs"), "OMP_NUM_THREADS": "1"}
        keys = SlurmSite.PROFILE | {"walltime_min": 60}
        outside = parse(Site, keys | {"name": "outside"}, "outside")
        inside = parse(Site, keys | debian(folder / "debian") | {"name": "inside"}, "inside")
        show("container: Charliecloud on Slurm", [*started(inside, outside, folder), *drilled(inside, outside, folder)])


def debian(folder: Path) -> dict[str, object]:
    """Make a small Debian; return the keys of a site profile whose jobs run in it."""
    command = ["debootstrap", "--variant=minbase", f"--include={_LIBRARIES}", "bookworm", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return image_folder.profile(folder)


def started(inside: Site, outside: Site, folder: Path) -> list[Result]:
    """Time a start of Python, and a question to the scheduler, in the container and outside."""
    environment = dict(os.environ) | {"PYTHONPATH": str(Path(contrails.__file__).parents[1])}
    request = Request("ctbench", "builtins:print", (), paths=(folder,))

    def run(site: Site, code: str) -> Callable[[], object]:
        line = f"{python(site, request)} -c '{code}'"
        return lambda: subprocess.run(["bash", "-c", line], env=environment, check=True, stdout=subprocess.DEVNULL)

    ask = 'import subprocess; subprocess.run(["squeue"], check=True)'
    bare, bare_ask, there, there_ask = medians([run(site, code) for site in (outside, inside) for code in ("", ask)])
    added, call = there - bare, (there_ask - there) - (bare_ask - bare)
    return [
        Result("added to a start", added, "s", "1 s", added <= 1, {"python outside, s": bare}),
        Result("added to a call of squeue", call, "s", "", None, {"squeue outside, s": bare_ask - bare}),
    ]


def medians(calls: Sequence[Callable[[], object]]) -> list[float]:
    """Return the median seconds of each call; they take turns."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(_STARTS):
        for call, of in zip(calls, seconds, strict=True):
            begun = time.perf_counter()
            call()
            of.append(time.perf_counter() - begun)
    return [statistics.median(of) for of in seconds]


def drilled(inside: Site, outside: Site, folder: Path) -> list[Result]:
    """Kill a training in the container, and compare it with undisturbed ones in the container and outside."""
    data = folder / "data"
    make_data(data)
    run, config = create_run(small_recipe(data, KILLS), outside, "outside")
    submit_folds(run, config, ["0"])
    outcome = drill(inside, "inside", data, KILLS, seed=0)
    while not run.fold("0").done.exists():
        time.sleep(1)
    same = result_of(run.fold("0")) == result_of(Run(folder / "runs" / "inside-killed").fold("0"))
    lost = [kill.steps_lost for kill in outcome.kills if kill.way in ("SIGTERM", "SIGUSR2", "walltime")]
    seconds, num_kills = statistics.median(kill.seconds_lost for kill in outcome.kills), len(outcome.kills)
    return [
        Result("interruptions survived", num_kills, "", "50", num_kills >= 50, {"steps": outcome.steps}),
        Result("bits equal to the undisturbed training in the container", outcome.equal, "", "1", outcome.equal),
        Result("bits equal to the undisturbed training outside of it", same, "", "1", same),
        Result("steps lost after a signal, most", max(lost), "", "0", not any(lost), {"kills": len(lost)}),
        Result("kill to the first new step, median, the queue included", seconds, "s", "", None),
    ]


if __name__ == "__main__":
    main()
