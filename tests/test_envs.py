"""`envs/build`: what it installs into an environment that exists, and what it removes; definitions of images."""

import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest

import contrails

CLONE = Path(contrails.__file__).parents[1]


def executable(path: Path, *lines: str) -> None:
    path.write_text("\n".join(["#!/bin/bash", *lines]) + "\n")
    path.chmod(0o755)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with an environment in which contrails is installed under its former name.

    Its pip removes what it is told to, and only writes down what it would install; its python checks nothing.
    """
    (tmp_path / "contrails.egg-info").mkdir()
    shutil.copytree(CLONE / "envs", tmp_path / "envs")
    shutil.copy(CLONE / "setup.cfg", tmp_path)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / ".venv"], check=True)
    (site,) = (tmp_path / ".venv").glob("lib/python*/site-packages")
    former = site / "contrails-0.1.0.dist-info"
    former.mkdir()
    files = {
        "METADATA": "Metadata-Version: 2.1\nName: contrails\nVersion: 0.1.0\n",
        "INSTALLER": "pip\n",
        "entry_points.txt": "[submitit]\nexecutor = contrails.submitit_pbs.executor:PbsExecutor\n",
    }
    for name, text in files.items():
        (former / name).write_text(text)
    (former / "RECORD").write_text("".join(f"{former.name}/{name},,\n" for name in (*files, "RECORD")))
    bin_folder = tmp_path / ".venv/bin"
    (bin_folder / "python").rename(bin_folder / "real")
    executable(bin_folder / "python", "exit 0")
    real_pip = f'exec "{sys.executable}" -m pip --python "{bin_folder / "real"}" "$@"'
    executable(bin_folder / "pip", f'[ "$1" = uninstall ] && {real_pip}', f'echo "$*" >>"{tmp_path / "pip.log"}"')
    return tmp_path


def test_the_distribution_of_the_former_name_is_removed(clone: Path) -> None:
    subprocess.run([clone / "envs/build"], check=True)
    assert list(clone.glob(".venv/lib/python*/site-packages/contrails*")) == []
    assert not (clone / "contrails.egg-info").exists()
    assert (clone / "pip.log").read_text().rstrip().endswith("-c envs/constraints.txt -e .")
    subprocess.run([clone / "envs/build", "test"], check=True)  # there is nothing to remove any more


def test_a_job_at_metacentrum_renews_its_ticket_while_it_runs(tmp_path: Path) -> None:
    executable(tmp_path / "klist", '[ "$*" = -s ]')
    executable(tmp_path / "kinit", f'echo "$*" >>{tmp_path}/renewed')
    executable(tmp_path / "sleep", f'echo "$*" >>{tmp_path}/slept', "exec /bin/sleep 0.05")
    wait = f"while [ ! -s {tmp_path}/slept ]; do /bin/sleep 0.05; done; echo $TMPDIR $SINGULARITY_TMPDIR"
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SCRATCHDIR": "/scratch/me/job_7"}
    command = ["bash", "-c", f"source {CLONE}/envs/metacentrum.sh; {wait}"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert done.stdout == "/scratch/me/job_7 /scratch/me/job_7\n"
    assert set((tmp_path / "renewed").read_text().split()) == {"-R"}
    assert set((tmp_path / "slept").read_text().split()) == {"60"}


def test_no_text_tells_to_install_a_strangers_package() -> None:
    config = ConfigParser()
    config.read(CLONE / "setup.cfg")
    assert config["metadata"]["name"] == "contrails-hpc"
    texts = [*CLONE.glob("*.md"), *(path for folder in ("contrails", "jobs", "envs") for path in folder_texts(folder))]
    assert CLONE / "README.md" in texts
    assert CLONE / "contrails/errors.py" in texts
    for path in texts:
        assert "contrails[" not in path.read_text().replace("-hpc", ""), path


def test_images_have_the_tested_versions_and_the_python_of_the_other_environments() -> None:
    definition, dockerfile = ((CLONE / "envs" / name).read_text() for name in ("contrails.def", "Dockerfile"))
    install = "python3 -m pip install --no-cache-dir -c /opt/contrails/constraints.txt '/opt/contrails[scenes]'"
    base = "python:3.11-slim-bookworm"
    for text in (definition, dockerfile):
        assert install in text
        assert text.count(base) == 1
        assert "apt-get install -y --no-install-recommends libexpat1 procps" in text
        assert "LC_ALL=C.UTF-8" in text
    assert "python=3.11" in (CLONE / "envs/cpu.yml").read_text()
    constrained = {line.partition("==")[0] for line in (CLONE / "envs/constraints.txt").read_text().splitlines()}
    config = ConfigParser()
    config.read(CLONE / "setup.cfg")
    wanted = config["options"]["install_requires"] + config["options.extras_require"]["scenes"]
    names = {re.split("[><=]", line)[0] for line in wanted.split("\n") if line and not line.startswith("#")}
    assert {normal(name) for name in names} <= {normal(name) for name in constrained}
    for file in ("contrails", "pyproject.toml", "setup.cfg", "README.md", "LICENSE", "envs/constraints.txt"):
        assert (CLONE / file).exists()
        assert re.search(rf"^ +{file} /opt/contrails/", definition, re.MULTILINE)
        assert re.search(rf"^COPY .*\b{file} .*/opt/contrails/", dockerfile, re.MULTILINE)


def normal(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def folder_texts(folder: str) -> list[Path]:
    return [path for path in (CLONE / folder).rglob("*") if path.suffix in {".py", ".md", ".toml", ".yml", ".sh"}]
