"""Two processes that run one script as a group over gloo."""

import os
import subprocess
import sys
from pathlib import Path

_HEAD = """
import sys
from contrails.train.ranks.group import Ranks
import torch
from torch import distributed, nn
number = int(sys.argv[1])
distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=number, world_size=2)
ranks = Ranks(number, 2)
"""


def run_two_ranks(script: str, folder: Path) -> None:
    """Run a script, which has `number` and `ranks`, in both processes; fail if one of them does."""
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _HEAD + script]
    processes = [
        subprocess.Popen([*command, str(number), str(folder / "meeting")], env=environment, stderr=subprocess.PIPE)
        for number in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
