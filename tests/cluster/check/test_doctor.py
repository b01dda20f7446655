"""What doctor says of a machine, with what to do; on a real cluster it is tested with submission."""

import json
import sys
from pathlib import Path

import pytest

from contrails.cli.main import cli
from contrails.cluster.check import doctor
from contrails.cluster.check.doctor import _memory, check_site
from contrails.cluster.check.quota import parse_quota, quota_left_gb
from contrails.cluster.schedulers.base import Check
from contrails.cluster.schedulers.sites import Site
from contrails.recipe.recipe import Recipe

from slurm_site import fresh_path

QUOTA = """\
Disk quotas for user alice (uid 1000):
     Filesystem   blocks   quota   limit   grace   files   quota   limit   grace
/dev/sdb1   500*   400   1000000   0   1   0   0   0
nas:/home   2000000   0   0   0   1   0   0   0
"""


@pytest.mark.parametrize(
    ("text", "device", "left"),
    [
        (QUOTA, "/dev/sdb1", 999500 * 1024 / 1e9),
        (QUOTA, "nas:/home", None),  # no limit
        (QUOTA, "/dev/sda1", None),
        ("      /lustre 3000* 1000 2000 6d23h 7 0 0 -", None, 0.0),
        ("/lustre 3000 4000 0 - 7 0 0 -", None, 1000 * 1024 / 1e9),
        ("lfs quota: permission denied", None, None),
        ("", None, None),
    ],
)
def test_what_a_quota_leaves(text: str, device: str | None, left: float | None) -> None:
    assert parse_quota(text, device) == left


def test_a_root_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = {check.name: check for check in check_site(Site(name="here"), tmp_path / "file" / "runs", None)}
    assert not found["files"].holds
    assert found["files"].found.startswith(f"cannot create {tmp_path}/file/runs: Not a directory; check the path")
    assert "$CONTRAILS_RUNS" in found["files"].advice
    assert "free space" not in found


def space(site: Site, root: Path) -> tuple[bool, str]:
    (found,) = (check for check in check_site(site, root, None) if check.name == "free space")
    return found.holds, found.found


def test_a_small_quota_is_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, site = tmp_path / "runs", Site(name="local")
    device = f"$(df --output=source {tmp_path} | tail -1)"
    path = fresh_path(tmp_path / "bin", quota=f'echo "{device} 1000000 0 4000000 0 1 0 0 0"', lfs="exit 1")
    monkeypatch.setenv("PATH", path)
    assert quota_left_gb(tmp_path) == pytest.approx(3.072)
    holds, found = space(site, root)
    assert not holds
    assert found.endswith("3 GB of your quota left")
    monkeypatch.setenv("PATH", fresh_path(tmp_path / "lustre", lfs='echo "/lustre 0 9000000000 0 - 1 0 0 -"'))
    assert space(site, root)[1].endswith("9216 GB of your quota left")
    monkeypatch.setenv("PATH", fresh_path(tmp_path / "none", quota="exit 1", lfs="exit 1"))
    assert "of your quota" not in space(site, root)[1]


@pytest.mark.parametrize(
    ("residency", "memory_gb", "holds", "words"),
    [
        ("ram", 1e-6, False, "memory of a job 0.0 GB"),
        ("ram", 1, True, "memory of a job 1.0 GB"),
        ("ram", None, False, "the scheduler's default"),
        ("mmap", 1e-6, True, "mmap"),
    ],
)
def test_memory_for_the_dataset(
    tiny_data: Path, residency: str, memory_gb: float | None, holds: bool, words: str
) -> None:
    data = {"dataset": str(tiny_data / "train.h5"), "filelist": "unused.csv", "residency": residency}
    site = Site(name="s", scheduler="slurm", memory_gb=memory_gb)
    found = _memory(site, Recipe.model_validate({"data": data}))
    assert found.holds == holds
    assert words in found.found
    assert "memory_gb" in found.advice


def test_a_missing_dataset_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('[data]\ndataset = "nowhere.h5"\nfilelist = "unused.csv"\n')
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setenv("CONTRAILS_RUNS", str(tmp_path / "runs"))
        cli(["doctor", "--site", "local", "--recipe", str(recipe), "--json"], standalone_mode=False)
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert not checks["dataset"]["holds"]
    assert "contrails prepare" in checks["dataset"]["advice"]
    assert checks["exclusive mkdir"]["holds"]
    assert checks["import torch"]["holds"]
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_job_says_whether_its_environment_is_on_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ())
    site = Site(name="s", scheduler="slurm", stage_dir=tmp_path, environment_archive=Path("/project/env.tar"))

    def found() -> Check:
        return next(check for check in doctor.check_node(site, tmp_path / "runs") if check.name == "environment")

    assert not found().holds
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment-0123456789abcdef"))
    assert found().holds
