"""The checks of `contrails doctor`, each with advice for when it fails.

`check_site` runs on the login node; `check_node` runs on the machine that trains, here or in a small job.
"""

import fcntl
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import psutil

from contrails.cluster.check.image import BUILD, check_image, check_package
from contrails.cluster.check.quota import quota_left_gb
from contrails.cluster.queue.command import command_request
from contrails.cluster.queue.freeze import freeze_code
from contrails.cluster.queue.submission import submit_job, submitting
from contrails.cluster.schedulers.base import Check, Reference, scheduler_of
from contrails.cluster.schedulers.containers import ENTERED
from contrails.cluster.schedulers.devices import listed_gpus, visible_devices
from contrails.cluster.schedulers.sites import Site, found_schedulers, holds_copy, require_scheduler
from contrails.cluster.status.fold_state import end_of_log
from contrails.dataset.store import made_from_raw
from contrails.errors import ClusterError, NodeError, StorageError
from contrails.files import storage
from contrails.gpu import has_kernels
from contrails.recipe.recipe import Recipe
from contrails.runs.folder import Run, job_log

_PACKAGES = ("h5py", "numpy", "pydantic", "safetensors", "scipy", "segmentation_models_pytorch", "submitit", "torch")
_FREE_GB = 5.0
_SKEW_S = 5.0
_WAIT_S = 600.0


def check_site(site: Site, root: Path, recipe: Recipe | None) -> Iterator[Check]:
    """Yield the checks that work on a login node; `root` is the folder of the runs."""
    if scheduler_of(site).CAPABILITIES.has_queue:
        here = found_schedulers()[site.scheduler]
        yield Check("scheduler", here, site.scheduler if here else f"no {site.scheduler} here", "log in to the cluster")
        if here:
            yield from scheduler_of(site).check(site)
    yield from check_image(site)
    yield from _shared_files(root)
    if os.access(root, os.R_OK):
        yield _space(root)
    if recipe is not None:
        yield _memory(site, recipe)


def check_node(site: Site, root: Path) -> Iterator[Check]:
    """Yield the checks that must run on the machine that trains; `root` is the folder of the runs."""
    runs_here = scheduler_of(site).CAPABILITIES.runs_here
    if not runs_here:
        yield from _shared_files(root)
    yield from check_package()
    yield from map(_imports, _PACKAGES)
    needs_gpu = site.device == "cuda" or (site.device == "auto" and bool(site.num_gpus))
    if needs_gpu or runs_here:
        yield _gpus(needed=needs_gpu)
    if needs_gpu:
        yield _cuda()
    for event, command in (("on_done", site.on_done), ("on_failed", site.on_failed)):
        if command:
            found = shutil.which(command[0])
            yield Check(event, found is not None, found or f"no command {command[0]}", "correct the site profile")
    if (folder := site.own_stage_dir()) is not None:
        writable = folder.is_dir() and os.access(folder, os.W_OK)
        found = f"{folder} {'is writable' if writable else 'is missing or not writable'}"
        if site.environment_archive is not None and not runs_here:
            is_local = Path(sys.prefix).parent == folder
            advice = "the job's output says why the environment was not unpacked in the scratch folder"
            yield Check("environment", is_local, f"Python runs in {sys.prefix}", advice)
        yield Check("scratch", writable, found, "set stage_dir of the site to the node's scratch folder")


def _shared_files(root: Path) -> Iterator[Check]:
    """Test the operations on the runs' file system that claims, snapshots and journals need."""
    folder = root / f".doctor-{os.getpid()}-{secrets.token_hex(4)}"
    advice = "put the runs on another file system: $CONTRAILS_RUNS"
    try:
        with storage(root, "create"):
            root.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            yield Check("exclusive mkdir", _refuses_second(folder), str(root), advice)
            (folder / "one").write_text("x")
            (folder / "one").replace(folder / "two")
            yield Check("rename", (folder / "two").exists(), str(root), advice)
            yield _clock(folder / "two")
        yield _locks(folder / "two")
    except StorageError as error:
        yield Check("files", False, str(error), advice)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _clock(new: Path) -> Check:
    skew = abs(new.stat().st_mtime - time.time())
    return Check("clock", skew < _SKEW_S, f"{skew:.1f} s from the file server", "tell the cluster's support")


def _refuses_second(folder: Path) -> bool:
    (folder / "claim").mkdir()
    try:
        (folder / "claim").mkdir()
    except FileExistsError:
        return True
    return False


def _locks(path: Path) -> Check:
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        advice = "do not start the same command twice at the same time, or set $CONTRAILS_RUNS to another file system"
        return Check("file locks", False, str(error), advice)
    return Check("file locks", True, str(path.parent.parent))


def _space(root: Path) -> Check:
    free, left = shutil.disk_usage(root).free / 1e9, quota_left_gb(root)
    found = f"{free:.0f} GB at {root}" + ("" if left is None else f", {left:.0f} GB of your quota left")
    enough = min(free, free if left is None else left) >= _FREE_GB
    return Check("free space", enough, found, "remove old runs, ask for more quota, or set $CONTRAILS_RUNS elsewhere")


def _memory(site: Site, recipe: Recipe) -> Check:
    """Compare the dataset's size with a job's memory; only residency "ram" needs memory for a private copy."""
    path = recipe.data.dataset
    if not path.is_file():
        return Check("dataset", False, f"no file {path}", made_from_raw(path))
    here = psutil.virtual_memory().available / 1e9
    memory = site.memory_gb or (here if scheduler_of(site).CAPABILITIES.runs_here else None)
    size = path.stat().st_size / 1e9
    enough = recipe.data.residency != "ram" or (memory is not None and holds_copy(memory, path))
    shown = "the scheduler's default" if memory is None else f"{memory:.1f} GB"
    found = f'dataset {size:.1f} GB, data.residency = "{recipe.data.residency}", memory of a job {shown}'
    return Check("memory", enough, found, 'set or raise memory_gb of the site, or set data.residency = "mmap"')


def _imports(package: str) -> Check:
    """Import a package in a process of its own, since a package built for another CPU can crash."""
    code = f"import {package}; print(getattr({package}, '__version__', ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    found = done.stdout.strip() if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it crashed"])[-1]
    advice = BUILD if ENTERED in os.environ else "build the environment again: envs/build"
    return Check(f"import {package}", done.returncode == 0, found, advice)


def _gpus(*, needed: bool) -> Check:
    """Check which GPUs this process may use, by their UUIDs."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        devices = visible_devices()
    except NodeError as error:
        return Check("GPU", False, str(error), "correct the variable, or `unset CUDA_VISIBLE_DEVICES`")
    found = f"{len(devices)} of the {len(listed_gpus())} that the driver lists"
    found += "" if hidden is None else f", by CUDA_VISIBLE_DEVICES='{hidden}'"
    advice = "check CUDA_VISIBLE_DEVICES, and num_gpus and constraint of the site"
    return Check("GPU", bool(devices) or not needed, ": ".join(filter(None, (found, ", ".join(devices)))), advice)


def _cuda() -> Check:
    code = (
        "import json; from torch import cuda; gpus = range(cuda.device_count() or 1); print(json.dumps("
        "[[[cuda.get_device_name(n), cuda.get_device_capability(n)] for n in gpus], cuda.get_arch_list()]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        found = (done.stderr.strip().splitlines() or ["it crashed"])[-1]
        return Check("CUDA", False, found, "the driver may be too old for this torch: see envs/")
    return judge_gpus(*json.loads(done.stdout))


def judge_gpus(gpus: Sequence[tuple[str, tuple[int, int]]], built_for: Sequence[str]) -> Check:
    """Compare the GPUs (name, compute capability) with the architectures that torch was built for."""
    without = [(name, major, minor) for name, (major, minor) in gpus if not has_kernels((major, minor), built_for)]
    if not without:
        return Check("CUDA", True, ", ".join(name for name, _ in gpus))
    shown = ", ".join(f"{name} is sm_{major}{minor}" for name, major, minor in without)
    advice = (
        "request another GPU in the site profile (gpu_cap of [resources] on PBS, gpu_type or constraint on Slurm), "
        "or install a torch that was built for this GPU"
    )
    return Check("CUDA", False, f"{shown}, and this torch has kernels for {', '.join(built_for)}", advice)


def check_by_job(site: Site, run: Run) -> list[Check]:
    """Return the results of `check_node` in a job of the site; `run` is a folder for its files.

    Raises:
        ClusterError: the site has no scheduler, or the job does not end or prints no result.
        RecipeError: the site lacks a file that its profile names.
    """
    if not scheduler_of(site).CAPABILITIES.has_queue:
        raise ClusterError(f"--job needs a site with a scheduler, {site.name} is this machine; leave --job out")
    require_scheduler(site)
    site = site.with_files()
    shutil.rmtree(run.path, ignore_errors=True)
    run.create_folder()
    freeze_code(run)
    with submitting(run):
        request = command_request(run, "d0", ["doctor", "--node", "--json", "--site", site.name], site.num_cpus)
        job_id = submit_job(run, site, request)
    folder = run.job_folder(request.name)
    _wait(site, Reference(request.name, folder, time.time(), job_id))
    log = job_log(folder, job_id, "out")
    answers = [line for line in log.read_text().splitlines() if line.startswith("[")] if log.exists() else []
    if not answers:
        said = end_of_log(job_log(folder, job_id, "err")) or "nothing in its log"
        raise ClusterError(
            f"expected the checks of job {job_id} in its output, found {said}; see its files in {folder}"
        )
    return [replace(Check(**row), name=f"job: {row['name']}") for row in json.loads(answers[-1])]


def _wait(site: Site, reference: Reference) -> None:
    """Wait until a job has ended; cancel it if it does not start in time or never can.

    Raises:
        ClusterError: the job has not run.
    """
    scheduler, end = scheduler_of(site), time.monotonic() + _WAIT_S
    while True:
        job = scheduler.look([reference]).get(reference.name)
        if job is None or (job.state == "ended" and not job.never_ran):
            return
        if job.state == "ended" or job.stuck or time.monotonic() > end:
            break
        time.sleep(2)
    scheduler.cancel([reference])
    raise ClusterError(
        f"expected job {job.job_id} to check its node within {_WAIT_S:.0f} s, found it {job.native}; it was "
        f"cancelled; change the profile of {site.name}, or run the same command again later"
    )
