"""Site profiles: read, refused, and turned into numbers."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from contrails.cli.main import cli
from contrails.cluster.schedulers import devices, sites
from contrails.cluster.schedulers.devices import Gpu
from contrails.cluster.schedulers.sites import Site, all_sites, find_site, resolve
from contrails.errors import ClusterError, NodeError, RecipeError


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_three_are_built_in() -> None:
    assert list(all_sites()) == ["local", "slurm", "pbs"]
    assert find_site(None).name == "local"


def test_on_a_cluster_its_profile_goes_before_the_built_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sites, "has_slurm", lambda: True)
    assert find_site(None).name == "slurm"
    write(tmp_path / "jobs/sites/zeta.toml", 'scheduler = "slurm"')
    write(tmp_path / "jobs/sites/desk.toml", "num_threads = 2")
    assert find_site(None).name == "zeta"


def test_the_nearer_profile_wins(tmp_path: Path) -> None:
    write(tmp_path / "home/.config/contrails/sites/big.toml", "num_threads = 3")
    write(tmp_path / "home/.config/contrails/sites/local.toml", "sync = true")
    write(tmp_path / "jobs/sites/big.toml", "num_threads = 4")
    assert find_site("big").num_threads == 4
    assert find_site("local").sync


def test_an_unknown_site_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"--site locl: expected the name of a site; did you mean 'local'"):
        find_site("locl")


def test_a_wrong_profile_is_in_the_way_of_nobody_who_does_not_ask_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "jobs/sites/abc.toml", "scheduler = 'slurm'\nnum_thread = 4")
    write(tmp_path / "jobs/sites/bad.toml", "not TOML")
    write(tmp_path / "jobs/sites/good.toml", "scheduler = 'slurm'")
    assert find_site("good").scheduler == "slurm"
    assert find_site(None).name == "local"
    cli(["sites"], standalone_mode=False)
    assert "abc: jobs/sites/abc.toml: unknown key num_thread" in capsys.readouterr().out
    cli(["sites", "--json"], standalone_mode=False)
    shown = {site["name"]: site for site in json.loads(capsys.readouterr().out)["sites"]}
    assert "bad.toml is not TOML" in shown["bad"]["problem"]
    assert shown["good"]["num_cpus"] == 1
    monkeypatch.setattr(sites, "has_slurm", lambda: True)  # there it would have been taken, and nothing else is
    with pytest.raises(RecipeError, match=r"num_thread.*; fix it, or choose --site local\|slurm\|pbs\|good"):
        find_site(None)
    (tmp_path / "jobs/sites/abc.toml").unlink()
    with pytest.raises(RecipeError, match=r"bad.toml is not TOML.*; fix it"):
        find_site(None)
    write(tmp_path / "jobs/sites/bad.toml", "scheduler = 'slurm'\ndefault = false\nnum_thread = 4")
    assert find_site(None).name == "good"


def test_a_wrong_profile_names_file_and_key(tmp_path: Path) -> None:
    write(tmp_path / "jobs/sites/x.toml", "num_thread = 4")
    with pytest.raises(RecipeError, match=r"jobs/sites/x.toml: unknown key num_thread; did you mean 'num_threads'"):
        find_site("x")


@pytest.mark.parametrize(
    ("site", "gpus", "cores", "expected"),
    [
        (Site(name="s"), 0, 8, ("cpu", 5, 1)),
        (Site(name="s"), 0, 2, ("cpu", 2, 1)),
        (Site(name="s"), 2, 8, ("cuda", 0, 4)),  # as many as there are when a job is submitted
        (Site(name="s", folds_at_a_time=4), 2, 8, ("cuda", 4, 2)),
        (Site(name="s", device="cpu"), 2, 16, ("cpu", 5, 3)),
        (Site(name="s", folds_at_a_time=1), 0, 8, ("cpu", 1, 8)),
        (Site(name="s", num_threads=2), 0, 8, ("cpu", 5, 2)),
        # a cluster's job has what it asks for, whatever this machine has
        (Site(name="s", scheduler="slurm", num_cpus=6), 2, 8, ("cpu", 1, 6)),
        (Site(name="s", scheduler="slurm", num_gpus=1, num_cpus=8, folds_at_a_time=4), 0, 2, ("cuda", 4, 2)),
    ],
)
def test_what_a_machine_carries(
    site: Site, gpus: int, cores: int, expected: tuple[str, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "listed_gpus", lambda: [Gpu(n, "A100", f"GPU-{n}") for n in range(gpus)])
    monkeypatch.setattr(sites, "num_cores", lambda: cores)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=64e9))
    found = resolve(site, 5)
    assert (found.device, found.folds_at_a_time, found.num_threads) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[resources]\ngpu_cap = "cuda75"', "gpu_cap 'cuda75': expected compute_75 or sm_75"),
        ('[resources]\ngpu_cap = "sm_75,80"', "gpu_cap '80'"),
        ('[resources]\n"gpu mem" = "1gb"', "expected the name of a resource"),
        ('constraint = "a100"', r"constraint is for Slurm only; on PBS set .* in \[resources\]"),
        (
            '[scheduler_arguments]\nreservation = "x"',
            r"an option of qsub \(M, P, a, l, m, p, v\), found 'reservation'",
        ),
        ('[scheduler_arguments]\nl = "place=excl,mem=4gb"', "a resource of the whole job.* found mem, which contrails"),
        ("[scheduler_arguments]\nv = \"A='b c'\"", "expected NAME=VALUE, with commas between several, and no quotes"),
    ],
)
def test_a_wrong_profile_for_pbs(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "jobs/sites/x.toml", f'scheduler = "pbs"\n{text}')
    with pytest.raises(RecipeError, match=rf"jobs/sites/x.toml: .*{message}"):
        find_site("x")


def test_profiles_that_ship_are_valid_and_metacentrum_is_nobodys_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[3])
    monkeypatch.setattr(sites, "found_schedulers", lambda: {"slurm": False, "pbs": True})
    assert {"metacentrum", "openpbs", "slurm-large"} <= set(all_sites())
    assert find_site(None).name == "openpbs"
    assert find_site("metacentrum").resources["gpu_mem"] == "16gb"


@pytest.mark.parametrize(("scheduler", "command"), [("slurm", "sbatch"), ("pbs", "qsub")])
def test_a_profile_for_a_scheduler_that_is_not_there(
    scheduler: str, command: str, tmp_path: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "jobs/sites/far.toml", f'scheduler = "{scheduler}"')
    data = ["-o", f"data.dataset={tiny_data / 'train.h5'}", "-o", f"data.filelist={tiny_data / 'three.csv'}"]
    write(tmp_path / "r.toml", '[model]\nencoder = "resnet18"')
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ClusterError, match=rf"site far: expected the command {command} of its scheduler .*login node"):
        cli(["submit", "r.toml", *data, "--site", "far", "--folds", "3"], standalone_mode=False)
    assert not (tmp_path / "runs").exists()


def test_a_scratch_folder_is_that_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(name="s", stage_dir=Path("$SCRATCHDIR/data"))
    monkeypatch.delenv("SCRATCHDIR", raising=False)
    with pytest.raises(NodeError, match=r"stage_dir = '\$SCRATCHDIR/data' of the site s: .*scratch_local"):
        site.own_stage_dir()
    monkeypatch.setenv("SCRATCHDIR", "/scratch/job7")
    assert site.own_stage_dir() == Path("/scratch/job7/data")
