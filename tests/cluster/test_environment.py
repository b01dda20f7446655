"""An environment that `envs/pack` packed: it works in any folder, is unpacked once per node, and jobs train from it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from small_disk import SmallDisk

import contrails
from contrails.cluster.environment import archive_variables, local_interpreter, read_archive, unpack
from contrails.cluster.queue.submission import with_archive
from contrails.cluster.schedulers import pbs
from contrails.cluster.schedulers.base import Request
from contrails.cluster.schedulers.sites import find_site
from contrails.errors import RecipeError, StorageError
from contrails.files import read_json, sha256

from local_site import Site

CLONE = Path(contrails.__file__).parents[1]
HEARD = "import os, sys; 'HEARD' in os.environ and open(os.environ['HEARD'], 'a').write(sys.prefix + chr(10))\n"


def pack(clone: Path, out: str) -> subprocess.CompletedProcess[str]:
    command = [str(clone / "envs/pack"), out]
    return subprocess.run(command, cwd=clone.parent, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of a small environment, whose clone is gone. Each of its Pythons appends its prefix to $HEARD."""
    clone = tmp_path_factory.mktemp("made") / "clone"
    shutil.copytree(CLONE / "envs", clone / "envs")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", clone / ".venv"], check=True)
    (site,) = (clone / ".venv").glob("lib/python*/site-packages")
    folders = [sysconfig.get_path("purelib"), *(path for path in sys.path if path.endswith("site-packages"))]
    (site / "others.pth").write_text("\n".join(dict.fromkeys(folders)) + "\n" + HEARD)
    script = clone / ".venv/bin/where"
    script.write_text(f"#!{clone}/.venv/bin/python\nimport sys\nprint(sys.prefix)\n")
    script.chmod(0o755)
    done = pack(clone, "env.tar")
    assert done.returncode == 0, done.stderr
    archive = clone.parent / "env.tar"
    assert done.stdout.startswith(f'environment_archive = "{archive}"  # unpacked ')
    assert {path.name for path in clone.parent.iterdir()} == {"clone", "env.tar", "env.tar.json"}
    shutil.rmtree(clone)
    return archive


def test_a_fold_trains_from_the_unpacked_environment(
    packed: Path, tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, scratch = Site(tmp_path, tiny_data), tmp_path / "scratch"
    profile = tmp_path / "jobs/sites/node.toml"
    profile.parent.mkdir(parents=True)
    profile.write_text(f'device = "cpu"\nstage_dir = "{scratch}"\nenvironment_archive = "{packed}"\n')
    monkeypatch.setenv("HEARD", str(tmp_path / "heard"))
    done = site.run("submit", "tiny.toml", "--site", "node", "--fold", "0", "--wait", "-o", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    (unpacked,) = scratch.glob("environment-*")
    # the code is the one that is frozen in the run: a task ends if it imports any other
    assert set((tmp_path / "heard").read_text().split()) == {str(unpacked)}
    assert read_json(site.fold("0").attempt(1).state)["start_s"]["environment"] > 0
    script = subprocess.run([unpacked / "bin/where"], env=variables(unpacked), capture_output=True, check=True)
    assert Path(script.stdout.decode().strip()) == unpacked


def variables(prefix: Path) -> dict[str, str]:
    return dict(os.environ) | {"LD_LIBRARY_PATH": str(prefix / "lib")}


def test_eight_jobs_of_a_node_unpack_once(packed: Path, tmp_path: Path) -> None:
    code = "from contrails.cluster.environment import local_interpreter; print(local_interpreter().python)"
    told = dict(os.environ) | archive_variables(packed, Path("$NODE/scratch")) | {"NODE": str(tmp_path)}
    command = [sys.executable, "-c", code]
    jobs = [
        subprocess.Popen(command, env=told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(8)
    ]
    said = [job.communicate(timeout=120) for job in jobs]
    (unpacked,) = (tmp_path / "scratch").glob("environment-*")
    assert [out for out, _ in said] == [f"{unpacked}/bin/python\n"] * 8
    assert sum(err.count("unpacking ") for _, err in said) == 1


def test_what_a_job_submits_from_there_runs_on_other_nodes(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in archive_variables(packed, tmp_path / "scratch").items():
        monkeypatch.setenv(name, value)
    found = local_interpreter()
    assert found.python != sys.executable
    ask = "from contrails.cluster.environment import shared_python; print(shared_python())"
    done = subprocess.run([found.python, "-c", ask], env=found.variables, capture_output=True, text=True, check=True)
    assert done.stdout == f"{sys.executable}\n"


def test_what_a_clean_up_has_removed_is_noticed(packed: Path, tmp_path: Path) -> None:
    archive = read_archive(packed)
    prefix = unpack(archive, tmp_path)
    first = prefix.stat().st_ino
    assert unpack(archive, tmp_path).stat().st_ino == first
    next(prefix.glob("lib/python*/site-packages/others.pth")).unlink()
    assert unpack(archive, tmp_path).stat().st_ino != first
    assert len(list(prefix.glob("lib/python*/site-packages/others.pth"))) == 1
    assert {path.name for path in tmp_path.iterdir()} == {prefix.name, f".{prefix.name}.lock"}


@pytest.mark.parametrize(
    ("num_bytes", "message"),
    [
        (None, r"expected 0\.\d GB of free space in .* found 0\.0 GB; request more scratch"),
        (1, r"cannot unpack .*/disk, where 0\.0 GB are free: tar: "),
    ],
)
def test_a_job_on_a_full_node_runs_the_shared_environment(
    num_bytes: int | None,
    message: str,
    tmp_path: Path,
    small_disk: SmallDisk,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(64 << 20))
    archive = tmp_path / "env.tar"
    subprocess.run(["tar", "-cf", archive, "-C", tmp_path, "big.bin"], check=True)
    about = {"sha256": "0" * 64, "bytes": num_bytes or archive.stat().st_size}
    (tmp_path / "env.tar.json").write_text(json.dumps(about))
    for name, value in archive_variables(archive, small_disk.path).items():
        monkeypatch.setenv(name, value)
    found = local_interpreter()
    assert (found.python, found.seconds) == (sys.executable, None)
    said = capsys.readouterr().err
    assert "the slower shared one is used" in said
    with pytest.raises(StorageError, match=message):
        unpack(read_archive(archive), small_disk.path)
    assert {name for name in small_disk.files() if not name.endswith(".lock")} == set()


def test_an_archive_that_cannot_be_used_is_named(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "other.tar"
    with pytest.raises(RecipeError, match=rf"found no archive; make both with `envs/pack {archive}`"):
        read_archive(archive)
    subprocess.run(["tar", "-cf", archive, "-C", CLONE, "README.md"], check=True)
    with pytest.raises(RecipeError, match=r"other.tar.json, found no description"):
        read_archive(archive)
    about = {"sha256": "0" * 64, "bytes": 1}
    archive.with_name("other.tar.json").write_text(json.dumps(about))
    with pytest.raises(StorageError, match=r"other.tar is not what `envs/pack` wrote \(another SHA-256\)"):
        unpack(read_archive(archive), tmp_path / "scratch")
    archive.with_name("other.tar.json").write_text(json.dumps(about | {"sha256": sha256(archive)}))
    with pytest.raises(StorageError, match=r"cannot run .*bin/python on this node: No such file"):
        unpack(read_archive(archive), tmp_path / "scratch")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StorageError, match=r"cannot unpack .*: this node has no command tar"):
        unpack(read_archive(archive), tmp_path / "scratch")
    assert list((tmp_path / "scratch").glob("environment-*")) == []


def test_a_profile_with_an_archive(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    profile = tmp_path / "jobs/sites/x.toml"
    profile.parent.mkdir(parents=True)
    profile.write_text('environment_archive = "env.tar"')
    with pytest.raises(RecipeError, match="environment_archive needs stage_dir"):
        find_site("x")
    profile.write_text('environment_archive = "env.tar"\nstage_dir = "/scratch"')
    with pytest.raises(RecipeError, match=rf"expected an archive and its description at {tmp_path}/env.tar"):
        find_site("x").with_files()
    profile.write_text(f'scheduler = "pbs"\nenvironment_archive = "{packed}"\nstage_dir = "$SCRATCHDIR"')
    request = with_archive(Request("ctnamef0a1", "builtins:print", ()), find_site("x").with_files())
    script = pbs.preview(tmp_path, find_site("x"), request).splitlines()
    assert f"export CONTRAILS_ENVIRONMENT_ARCHIVE={packed}" in script
    assert "export CONTRAILS_ENVIRONMENT_FOLDER='$SCRATCHDIR'" in script  # of the job, which replaces the variable


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    shutil.copytree(CLONE / "envs", tmp_path / "clone/envs")
    done = pack(tmp_path / "clone", "env.zip")
    assert "expected a name that ends in .tar.zst, .tar.gz or .tar, found env.zip" in done.stderr
    done = pack(tmp_path / "clone", "none/env.tar")
    assert "expected a folder for the archive at none, found none; create it" in done.stderr
    done = pack(tmp_path / "clone", "env.tar")
    assert f"expected an environment in {tmp_path}/clone/.venv, found none; run envs/build first" in done.stderr
    assert done.returncode == 1
    assert {path.name for path in tmp_path.iterdir()} == {"clone"}
