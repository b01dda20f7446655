"""The GPUs of the shell: listed by an nvidia-smi made here, chosen by CUDA_VISIBLE_DEVICES, given to the folds."""

import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from contrails.cli.main import cli
from contrails.cluster.check.doctor import judge_gpus
from contrails.cluster.schedulers.devices import visible_devices
from contrails.errors import NodeError
from contrails.gpu import has_kernels

from local_site import Site
from slurm_site import fresh_path

FOUR = "".join(f"GPU {n}: NVIDIA A100-SXM4-40GB (UUID: GPU-{n}{n}{n}{n}-aaaa)\n" for n in range(4))
MIXED = """\
GPU 0: NVIDIA RTX A4000 (UUID: GPU-0000-bbbb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-1111-bbbb)
"""
DIVIDED = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0000-cccc)
  MIG 3g.20gb     Device  0: (UUID: MIG-aaaa-1)
  MIG 3g.20gb     Device  1: (UUID: MIG-bbbb-2)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-1111-cccc)
"""
OF_FOUR = tuple(f"GPU-{n}{n}{n}{n}-aaaa" for n in range(4))


@pytest.mark.parametrize(
    ("capability", "built_for", "expected"),
    [
        ((7, 0), "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120", False),
        ((7, 5), "sm_75 sm_80", True),
        ((8, 9), "sm_75 sm_86", True),  # the same major, a lower minor
        ((8, 0), "sm_75 sm_86", False),
        ((9, 0), "sm_80 sm_86", False),
        ((10, 3), "sm_90 sm_100", True),
        ((12, 0), "sm_100", False),
        ((12, 0), "sm_75 compute_90", True),  # PTX is translated
        ((7, 0), "compute_75", False),
        ((9, 0), "sm_90a", True),
        ((10, 3), "sm_100a compute_100a", False),  # of that very architecture
        ((10, 3), "sm_100f", True),  # of the family
        ((12, 1), "sm_100f compute_120f", True),
        ((12, 0), "sm_100f compute_100f", False),
        ((8, 0), "", False),
        ((8, 0), "gfx90a", False),
    ],
)
def test_which_gpus_have_kernels(capability: tuple[int, int], built_for: str, expected: bool) -> None:
    assert has_kernels(capability, built_for.split()) == expected


def test_a_gpu_without_kernels_is_told() -> None:
    old, new = ("Tesla V100", (7, 0)), ("NVIDIA A40", (8, 6))
    assert judge_gpus([new], ["sm_80"]).holds
    check = judge_gpus([new, old], ["sm_80", "sm_90"])
    assert not check.holds
    assert check.found == "Tesla V100 is sm_70, and this torch has kernels for sm_80, sm_90"
    assert "gpu_cap" in check.advice


def test_the_profile_of_a_site_asks_for_gpus_that_the_tested_torch_runs_on() -> None:
    built_for = torch.cuda.get_arch_list()
    if not built_for:
        pytest.skip("this torch was built without CUDA")
    profile = tomllib.loads((Path(__file__).parents[3] / "jobs/sites/metacentrum.toml").read_text())
    for name in profile["resources"]["gpu_cap"].split(","):
        number = name.removeprefix("sm_")
        assert has_kernels((int(number[:-1]), int(number[-1])), built_for), name


@pytest.fixture
def bin_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder on the PATH whose nvidia-smi prints the file `gpus` beside it."""
    monkeypatch.setenv("PATH", fresh_path(tmp_path / "bin", **{"nvidia-smi": f"cat {tmp_path / 'gpus'}"}))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("listed", "wanted", "expected"),
    [
        (FOUR, None, OF_FOUR),
        (FOUR, "2,3", OF_FOUR[2:]),
        (FOUR, " 3, 1 ", (OF_FOUR[3], OF_FOUR[1])),
        (FOUR, "GPU-2222-aaaa,GPU-0", (OF_FOUR[2], OF_FOUR[0])),
        (FOUR, "1,-1,2", OF_FOUR[1:2]),
        (FOUR, "", ()),
        (FOUR, "-1", ()),
        (FOUR, "NoDevFiles", ()),
        (MIXED, None, ("GPU-0000-bbbb", "GPU-1111-bbbb")),
        (MIXED, "GPU-1111-bbbb", ("GPU-1111-bbbb",)),
        (DIVIDED, None, ("MIG-aaaa-1", "MIG-bbbb-2", "GPU-1111-cccc")),
        (DIVIDED, "MIG-bbbb-2,1", ("MIG-bbbb-2", "GPU-1111-cccc")),
        ("", "0", ()),  # no driver: whatever a shell sets means nothing
    ],
)
def test_a_shell_has_the_gpus_of_its_list(
    bin_: Path, listed: str, wanted: str | None, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (bin_ / "gpus").write_text(listed)
    if wanted is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    assert visible_devices() == expected


@pytest.mark.parametrize(
    ("listed", "wanted", "message"),
    [
        (
            FOUR,
            "7",
            r"CUDA_VISIBLE_DEVICES=7: '7' is none of this machine's GPUs; known: 0 = GPU-0000-aaaa \(NVIDIA A100",
        ),
        (FOUR, "0,one", "'one' is none of"),
        (FOUR, "0,,1", "'' is none of"),
        (FOUR, "GPU-", "'GPU-' is several of"),
        (FOUR, "GPU-9", "'GPU-9' is none of"),
        (FOUR, "1,GPU-1111", "a GPU is listed twice"),
        (
            MIXED,
            "1",
            "different types by speed, so '1' may be another GPU .* `export CUDA_DEVICE_ORDER=PCI_BUS_ID`",
        ),
        (DIVIDED, "0", r"'0' is divided \(MIG\): give its instances; known: 0 = MIG-aaaa-1, MIG-bbbb-2"),
        (DIVIDED, "MIG-cccc", "'MIG-cccc' is none of"),
    ],
)
def test_a_wrong_entry_is_said(
    bin_: Path, listed: str, wanted: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bin_ / "gpus").write_text(listed)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", wanted)
    with pytest.raises(NodeError, match=message):
        visible_devices()


def test_numbers_of_mixed_gpus_count_where_cuda_counts_as_nvidia_smi_does(
    bin_: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bin_ / "gpus").write_text(MIXED)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert visible_devices() == ("GPU-1111-bbbb",)


def test_doctor_prints_the_list(
    bin_: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from contrails.cluster.check.doctor import _gpus

    (bin_ / "gpus").write_text(FOUR)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    check = _gpus(needed=True)
    assert check.holds
    assert check.found == (
        "2 of the 4 that the driver lists, by CUDA_VISIBLE_DEVICES='2,3': GPU-2222-aaaa, GPU-3333-aaaa"
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not _gpus(needed=True).holds
    assert _gpus(needed=False).holds
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
    assert "'9' is none of" in _gpus(needed=False).found
    cli(["sites", "--json"], standalone_mode=False)  # the others are listed all the same
    shown = {site["name"]: site for site in json.loads(capsys.readouterr().out)["sites"]}
    assert "'9' is none of" in shown["local"]["problem"]
    assert shown["slurm"]["num_cpus"] == 1


@pytest.fixture
def site(bin_: Path, tiny_data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A user's folder on a machine with four GPUs; what trains there writes down which it was given, and ends."""
    monkeypatch.setenv("HOME", str(bin_ / "home"))
    (bin_ / "gpus").write_text(FOUR)
    site = Site(bin_, tiny_data)
    (site.package / "cluster" / "job" / "task.py").write_text(
        "import os, sys, time\nfrom pathlib import Path\n"
        "told, ended = (Path(sys.argv[1]) / f'{what}-{sys.argv[2]}' for what in ('told', 'ended'))\n"
        "told.with_suffix('.new').write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "told.with_suffix('.new').rename(told)\n"
        "while not ended.exists():\n    time.sleep(0.05)\n"
    )
    yield site
    for run in (bin_ / "runs").glob("*/run.toml"):
        for key in "012":
            (run.parent / f"ended-{key}").touch()


def test_folds_train_on_the_gpus_of_the_shell_and_never_two_on_one(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from local_site import eventually

    def submit(name: str, devices: str) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
        done = site.run("submit", "tiny.toml", "--name", name, "--folds", "3", "-o", "train.deterministic=false")
        assert done.returncode == 0, done.stderr

    def told(name: str) -> list[str]:
        return sorted(path.read_text() for path in (site.root / "runs" / name).glob("told-?"))

    submit("first", "2,3")
    eventually(lambda: told("first") == list(OF_FOUR[2:]))
    submit("second", "GPU-1111,3")
    eventually(lambda: told("second") == [OF_FOUR[1]])
    assert len(told("first")) == 2
    for key in "012":
        (site.root / "runs" / "first" / f"ended-{key}").touch()
    eventually(lambda: len(told("first")) == 3 and len(told("second")) == 2)
    assert set(told("first")) == set(OF_FOUR[2:])
    assert told("second") == [OF_FOUR[1], OF_FOUR[3]]


def test_a_run_on_gpus_is_refused_where_the_shell_has_none_and_nothing_is_made(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = site.root / "jobs" / "sites" / "gpu.toml"
    profile.parent.mkdir(parents=True)
    profile.write_text("device = 'cuda'")
    for devices, said in (("", "CUDA_VISIBLE_DEVICES='' leaves no others"), ("8", "'8' is none of")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", devices)
        refused = site.run("submit", "tiny.toml", "--fold", "0", "--site", "gpu")
        assert refused.returncode == 9
        assert said in refused.stderr
    assert not (site.root / "runs").exists()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "8"
