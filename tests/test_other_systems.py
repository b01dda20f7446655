"""Without what Linux alone has: a laptop with macOS is for looking at data and for debugging."""

import os
import subprocess
import sys
from pathlib import Path

from conftest import MakeRun

LINUX_ALONE = {
    "os": ["sched_getaffinity", "memfd_create", "fdatasync", "posix_fallocate", "posix_fadvise", "getrandom", "pipe2"],
    "signal": ["sigtimedwait", "sigwaitinfo", "pidfd_send_signal", "SIGRTMIN"],
    "select": ["epoll"],
}


def test_prepare_and_train_without_what_linux_alone_has(tiny_data: Path, make_run: MakeRun, tmp_path: Path) -> None:
    lines = [
        f"import {module}\nfor name in {names}:\n    vars({module}).pop(name, None)\n"
        for module, names in LINUX_ALONE.items()
    ]
    (tmp_path / "sitecustomize.py").write_text("".join(lines))
    environment = dict(os.environ) | {"PYTHONPATH": str(tmp_path)}
    train = (
        "import sys\nfrom pathlib import Path\nfrom contrails.runs.folder import Run\n"
        "from contrails.train.fold import train_fold\ntrain_fold(Run(Path(sys.argv[1])).fold('0'))\n"
    )
    run = make_run()
    for arguments in (
        ["-m", "contrails", "prepare", str(tiny_data / "raw"), str(tmp_path / "train.h5")],
        ["-m", "contrails", "sites"],
        ["-c", train, str(run.path)],
    ):
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "train.h5").read_bytes() == (tiny_data / "train.h5").read_bytes()
    assert run.fold("0").done.exists()
