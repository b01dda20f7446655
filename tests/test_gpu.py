"""GPUs that torch has no kernels for are named as such, whatever finds them, and the driver's version is read."""

from pathlib import Path

import pytest
import torch

from contrails import gpu
from contrails.cli.options import choose_device
from contrails.cluster.outcomes import cause_of_exit
from contrails.errors import NodeError

MESSAGE = (
    r"Tesla V100 has the compute capability sm_70, for which this torch has no kernels; it has them for sm_75, sm_90; "
    r"use another GPU \(gpu_cap in \[resources\] of the site profile on PBS, gpu_type or constraint on Slurm\), or"
)


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torch report a GPU of an architecture that it was not built for, as no machine of the tests has one."""
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _=None: "Tesla V100")
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _=None: (7, 0))
    monkeypatch.setattr("torch.cuda.get_arch_list", lambda: ["sm_75", "sm_90"])


@pytest.mark.usefixtures("old_gpu")
def test_a_gpu_without_kernels_is_a_fault_of_the_node() -> None:
    with pytest.raises(NodeError, match=MESSAGE) as caught:
        gpu.require_kernels(torch.device("cuda"))
    assert cause_of_exit(caught.value.exit_code) == "node"
    for name in ("auto", "cuda"):
        with pytest.raises(NodeError, match=MESSAGE):
            choose_device(name)
    assert choose_device("cpu").type == "cpu"


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n", "535.183.01"),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version:  12.2.0\n",
            "570.86.15",
        ),
        ("GCC version:  gcc version 12.2.0\n", None),
        (None, None),
    ],
)
def test_the_version_of_the_driver(
    text: str | None, version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_DRIVER", tmp_path / "version")
    if text is not None:
        (tmp_path / "version").write_text(text)
    assert gpu.driver_version() == version
