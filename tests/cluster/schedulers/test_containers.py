"""Containers: the command lines of the runtimes, and the calls of the scheduler that leave a container.

The shell scripts run for real. Where a test needs no container, a command of its own stands for the runtime.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from small_disk import SmallDisk

import contrails
from contrails.cluster.check.image import check_image, judge_package
from contrails.cluster.queue.shards import ShardJob, submit_shards
from contrails.cluster.schedulers import containers, pbs, slurm_script
from contrails.cluster.schedulers.base import Request
from contrails.cluster.schedulers.sites import Site
from contrails.errors import RecipeError
from contrails.recipe.reading import parse
from contrails.submitit_pbs.script import COMMANDS

from local_site import eventually
from slurm_site import fresh_path

CODE = Path(contrails.__file__).parents[1]
BARE = "env IMAGE={image}"
"""A command line that stands for a runtime: the command runs where it is."""

SQUEUE = r"""
case ${1-} in wait) : >"$2"; exec sleep 1000 ;; esac
printf '<%s>' "$@"; printf '%s|' "$PWD" "${SLURM_JOB_ID-none}" "${SAID-none}" "${INSIDE-none}"; cat
echo "to the user" >&2; exit 7"""


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node of a cluster, outside of containers: a PATH with squeue, and a folder for temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setenv("PYTHONPATH", str(CODE))
    monkeypatch.setenv("PATH", fresh_path(tmp_path / "bin", squeue=SQUEUE))
    (tmp_path / "bin" / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (tmp_path / "bin" / "python3").chmod(0o755)
    monkeypatch.setenv("SLURM_JOB_ID", "it's\n17")
    monkeypatch.setenv("SAID", "outside")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "an image.sif").write_bytes(b"image" * 1000)
    return tmp_path


def site(node: Path, runtime: str = BARE, **keys: object) -> Site:
    image = str(node / "an image.sif")
    values = {"name": "s", "scheduler": "slurm", "container": image, "container_runtime": runtime}
    return parse(Site, values | keys, "s.toml")


def start(site: Site, shell: str, *paths: Path) -> subprocess.Popen[bytes]:
    """Start shell lines in a container of the site, where Python is on the PATH too."""
    line = containers.python(site, Request("ct", "builtins:print", (), paths=paths)).removesuffix(containers.PYTHON)
    return subprocess.Popen(
        ["bash", "-c", f"exec {line} sh -c {shlex.quote(shell)}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(site: Site, shell: str, *paths: Path, stdin: bytes = b"") -> tuple[int, str, str]:
    with start(site, shell, *paths) as process:
        out, err = process.communicate(stdin, timeout=120)
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize(
    ("runtime", "command", "before", "after"),
    [
        ("apptainer", "apptainer", ["exec", "--nv", "--bind=FOLDER"], ["IMAGE"]),
        ("singularity", "singularity", ["exec", "--nv", "--bind=FOLDER"], ["IMAGE"]),
        ("charliecloud", "ch-run", ["--unset-env=PATH", "--bind=FOLDER"], ["IMAGE", "--"]),
        (
            "podman",
            "podman",
            ["run", "--rm", "--interactive", "--pid=host", "--network=host", "--ipc=host", "--userns=keep-id",
             "--cgroups=disabled", "--security-opt=label=disable", "--device=nvidia.com/gpu=all",
             "--volume=FOLDER:FOLDER"],
            ["IMAGE"],
        ),
        ("my run --mount={bind} --image={image} --", "my", ["run", "--mount=FOLDER"], ["--image=IMAGE", "--"]),
    ],
)  # fmt: skip
def test_the_command_line_of_a_runtime(
    node: Path, runtime: str, command: str, before: list[str], after: list[str]
) -> None:
    more = node / "a; b & 'c"
    more.mkdir()
    (node / "bin" / command).write_text(f"#!/bin/bash\nprintf '%s\\n' \"$@\" >'{node}/said'\n")
    (node / "bin" / command).chmod(0o755)
    chosen = site(node, runtime, num_gpus=1, stage_dir="$NOT_SET/scratch", container_binds=[str(more)])
    code, _, err = run(chosen, "true", node / "nothing" / "here")
    assert code == 9  # it has only written down its words
    assert f"expected {command} on the node" in err
    *head, bind = before
    binds = [bind.replace("FOLDER", str(folder)) for folder in (node, os.environ["HOME"], node / "temporary", more)]
    image = [word.replace("IMAGE", str(node / "an image.sif")) for word in after]
    words = (node / "said").read_text().splitlines()
    assert words[: words.index("sh")] == [*head, *binds, *image]


def test_folders_that_only_nodes_have_are_bound_beside_the_others(node: Path) -> None:
    chosen = site(node, container_binds=["/scratch-of-nodes", "/"])
    words = shlex.split(containers.python(chosen, Request("ct", "builtins:print", (), paths=(node,))))
    assert [word for before, word in pairwise(words) if before == "--bind"] == ["/scratch-of-nodes", str(node)]


def test_a_folder_that_a_runtime_would_misread_is_refused(node: Path) -> None:
    (node / "a:b").mkdir()
    with pytest.raises(RecipeError, match=r"expected folders without colon and comma, found .*a:b; move the data"):
        containers.python(site(node), Request("ct", "builtins:print", (), paths=(node / "a:b",)))


def test_shards_of_a_site_without_its_image_are_not_submitted(node: Path) -> None:
    (node / "bin/sbatch").write_text("#!/bin/bash\nexit 1\n")
    (node / "bin/sbatch").chmod(0o755)
    chosen = site(node)
    (node / "an image.sif").unlink()
    with pytest.raises(RecipeError, match=r"container of the site s: expected an image at .*, found none"):
        submit_shards(node / "made.h5", {"1": ShardJob("j1", ["prepare"])}, chosen)
    assert not list(node.glob(".made*"))


def test_a_call_leaves_the_container_as_it_was_made(node: Path) -> None:
    words = ["a b", "c\nd", "$(touch hacked)", "`touch hacked`", "'; touch hacked; \"", "", "*", "--format=%i|%E"]
    shell = f"cd bin; INSIDE=1 SAID=inside squeue {shlex.join(words)}; echo code=$?; "
    shell += "unset SLURM_JOB_ID SAID; squeue </dev/null"
    code, out, err = run(site(node), shell, stdin=b"line\n\n")
    said = "".join(f"<{word}>" for word in words)
    assert out == f"{said}{node}/bin|it's\n17|inside|none|line\n\ncode=7\n<>{node}/bin|none|none|none|"
    assert (code, err) == (7, "to the user\n" * 2)
    assert not list(node.rglob("hacked"))
    assert list((node / "temporary").iterdir()) == []


def test_bytes_of_standard_input_and_output_are_those_of_the_command(node: Path) -> None:
    (node / "bin/qsub").write_text("#!/bin/bash\ncat\n")
    (node / "bin/qsub").chmod(0o755)
    content = bytes(range(256)) * 2000
    with start(site(node), "qsub") as process:
        out, _ = process.communicate(content, timeout=120)
    assert out == content


def test_many_calls_at_once(node: Path) -> None:
    calls = " ".join(f'squeue "{number} of" 20 </dev/null >{number}.txt &' for number in range(20))
    run(site(node), f"{calls} wait")
    for number in range(20):
        assert (node / f"{number}.txt").read_text().startswith(f"<{number} of><20>")


def test_a_caller_that_is_killed_takes_its_call_along(node: Path) -> None:
    shell = "squeue wait started & while [ ! -e started ]; do sleep 0.05; done; kill -KILL $!; echo killed; read end"
    with start(site(node), shell) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"killed\n"
        folder = next((node / "temporary").iterdir())
        eventually(lambda: not list(folder.glob("*.0")))
        process.communicate(b"\n", timeout=60)


def test_a_call_after_the_end_of_the_loop_fails(node: Path) -> None:
    shell = "read loop <${PATH%%/bin:*}/loop; kill -KILL $loop; sleep 0.2; squeue; echo $?; rm -r ${PATH%%/bin:*}/loop"
    code, out, err = run(site(node), shell)
    assert out.startswith("1\n")
    assert "squeue: the shell that serves calls of the scheduler from the container was ended" in err
    assert code == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_and_exit_codes_pass(node: Path, number: signal.Signals) -> None:
    shell = f"trap 'echo it came; exit 75' {number.value}; echo ready; while :; do sleep 0.05; done"
    with start(site(node), shell) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (75, b"it came\n")
    assert run(site(node), "kill -KILL $$")[0] == 137
    assert list((node / "temporary").iterdir()) == []


def test_what_a_killed_job_leaves_is_removed_by_the_next_one(node: Path) -> None:
    with start(site(node), "echo ready; read end") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.kill()
        (left,) = (node / "temporary").iterdir()
        process.communicate(timeout=60)
    seen = run(site(node), "ls ../temporary temporary 2>/dev/null | grep -c contrails-")[1]
    assert seen == "1\n"
    eventually(lambda: not left.exists())


def test_the_environment_of_the_job_but_not_the_paths_of_its_node(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-2")
    monkeypatch.setenv("VIRTUAL_ENV", "/node")
    monkeypatch.setenv("LIBRARY_PATH", "/node")
    runtime = "env -i PATH=/image/bin:/usr/bin:/bin IMAGE={image}"
    shell = 'echo "$CUDA_VISIBLE_DEVICES $SLURM_JOB_ID ${VIRTUAL_ENV-no} ${LIBRARY_PATH-no} $PYTHONNOUSERSITE" $PATH'
    _, out, _ = run(site(node, runtime), shell)
    assert out.startswith("GPU-1,GPU-2 it's\n17 no no 1 ")
    assert ":/image/bin:/usr/bin:/bin:" in out


def test_an_image_is_staged_once_for_a_node(node: Path) -> None:
    chosen = site(node, stage_dir="$SCRATCH_OF_JOB/below")
    os.environ["SCRATCH_OF_JOB"] = str(node / "scratch")
    try:
        with ThreadPoolExecutor(3) as pool:
            said = list(pool.map(lambda _: run(chosen, 'echo "$IMAGE"; cat "$IMAGE" | wc -c'), range(3)))
    finally:
        del os.environ["SCRATCH_OF_JOB"]
    assert {each[0] for each in said} == {0}, said
    (copy,) = {each[1] for each in said}
    assert copy.startswith(f"{node}/scratch/below/container-{os.getuid()}-5000-")
    assert copy.endswith("an image.sif\n5000\n")
    assert {path.suffix for path in (node / "scratch/below").iterdir()} == {".sif", ".lock"}


def test_a_damaged_copy_of_an_image_is_not_used(node: Path) -> None:
    (node / "bin/tee").write_text(
        '#!/bin/bash\nsed s/image/imago/ | /usr/bin/tee "${@: -1}" >/dev/null; cat /dev/null\n'
    )
    (node / "bin/tee").chmod(0o755)
    code, out, err = run(site(node, stage_dir=str(node / "scratch")), 'echo "$IMAGE"')
    assert (code, out) == (0, f"{node}/an image.sif\n")
    assert "is used: the copy differs from the image" in err
    assert [path.suffix for path in (node / "scratch").iterdir()] == [".lock"]


def test_a_full_scratch_falls_back_to_the_shared_image(node: Path, small_disk: SmallDisk) -> None:
    small_disk.leave(4)
    code, out, err = run(site(node, stage_dir=str(small_disk.path)), 'echo "$IMAGE"')
    assert (code, out) == (0, f"{node}/an image.sif\n")
    assert f"warning: no copy of the image on this node, so the slower shared file {node}/an image.sif is used" in err
    assert "No space left on device" in err
    assert all(name.endswith(".lock") for name in small_disk.files())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"container": "/no/x.sif"},
            r"expected the image /no/x\.sif on the node .*, found none; nodes may not see",
        ),
        (
            {"runtime": "apptainer"},
            "expected the command apptainer on the node .*, found none; load its module",
        ),
        (
            {"runtime": "false {image}"},
            "expected false on the node .* to run sh in .*, which is to be built for ",
        ),
        (
            {"runtime": "env -i PATH=/usr/bin IMAGE={image}"},
            "expected no-python on the PATH of the image, found none",
        ),
        (
            {"runtime": "unshare --pid --fork --mount-proc env I={image}"},
            "expected the process ids of the node",
        ),
    ],
)
def test_what_keeps_a_container_from_running(node: Path, keys: dict[str, str], message: str) -> None:
    line = containers.python(site(node, **keys), Request("ct", "builtins:print", ())).replace("python3", "no-python")
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 9
    assert re.search(message, done.stderr.replace("\n", " ")), done.stderr
    assert "envs/contrails.def" in done.stderr or "--pid=host" in done.stderr or "doctor --site s --job" in done.stderr
    assert list((node / "temporary").iterdir()) == []


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"container_runtime": "aptainer"}, r"container_runtime 'aptainer': .*did you mean 'apptainer'.*\{image\}"),
        ({"container_runtime": "my run"}, r"or a command line with the word \{image\}, such as"),
        ({"scheduler": "local"}, "container: for jobs of Slurm and PBS; on this machine, start contrails itself in"),
        ({"container_binds": ["data"]}, "container_binds 'data': expected an absolute path without colon and comma"),
        ({"container_binds": ["/a:/b"]}, "container_binds '/a:/b': expected an absolute path"),
    ],
)
def test_what_a_profile_may_not_say(keys: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse(Site, {"name": "s", "scheduler": "slurm", "container": "/x.sif"} | keys, "s.toml")


def test_a_missing_image_is_refused_before_submission(node: Path) -> None:
    assert site(node, "apptainer", container="an image.sif").with_files().container == f"{node}/an image.sif"
    for reference, runtime in (("docker://host/x:1", "apptainer"), ("localhost/x:1", "podman")):
        assert site(node, runtime, container=reference).with_files().container == reference
    with pytest.raises(RecipeError, match=f"container of the site s: expected an image at {node}/x.sif, found none"):
        site(node, "apptainer", container="x.sif").with_files()


def test_the_scripts_of_both_schedulers_run_everything_in_the_image(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request("ctf0a1", "builtins:print", (), teardown=('"${python[@]}" -m settle "$code"',), paths=(node,))
    begin = 'bash "$PYTHONPATH"/contrails/cluster/schedulers/container/enter.sh'
    begin += f" --site s --image '{node}/an image.sif' --bind "
    lines = slurm_script.script(node, site(node), request).splitlines()
    (task,) = [line for line in lines if line.startswith("srun")]
    assert f" {begin}{node} " in task
    assert " python3 -u -m submitit" in task
    assert f"python=({begin}{node} -- 'env IMAGE={{image}}' python3)" in lines
    assert sys.executable not in "".join(lines)

    monkeypatch.setenv(COMMANDS, "/opt/pbs/bin")  # as in a job, where qsub stands for that of the node
    lines = pbs.preview(node, site(node, scheduler="pbs"), request).splitlines()
    assert lines[-1].startswith(begin)
    assert "python3 -u -m contrails.submitit_pbs.in_job.link" in lines[-1]
    assert f"export {COMMANDS}=/opt/pbs/bin" in lines
    assert any('"python=(python3)"' in line for line in lines)


def test_doctor_looks_at_image_and_runtime(node: Path) -> None:
    def found(chosen: Site) -> dict[str, tuple[bool, str]]:
        return {check.name: (check.holds, check.found) for check in check_image(chosen)}

    assert found(Site(name="s", scheduler="slurm")) == {}
    holds, said = found(site(node, container="/no/x.sif"))["container"]
    assert (holds, "expected an image at /no/x.sif, found none" in said) == (False, True)
    assert found(site(node, "apptainer"))["container runtime"] == (False, "no command apptainer on this machine")
    assert found(site(node, "apptainer", prologue=["module load apptainer"]))["container runtime"][0]
    holds, said = found(site(node, "false {image}"))["package in the container"]
    assert (holds, "expected false on the node" in said) == (False, True)
    assert found(site(node))["package in the container"] == (True, f"contrails-hpc {contrails.__version__}")


@pytest.mark.parametrize("version", ["", "0.0.9"])
def test_doctor_names_an_image_without_the_package_or_with_another_version(version: str) -> None:
    check = judge_package(version)
    assert not check.holds
    assert check.found == f"expected contrails-hpc {contrails.__version__} in the image, found {version or 'none'}"
    assert "envs/contrails.def" in check.advice
