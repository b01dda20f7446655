"""How near a killed process had come to the memory of its job."""

import subprocess
import sys

import psutil
import pytest

from contrails.cluster.memory import Peak, peak_of, used_by_children_gb
from contrails.cluster.outcomes import Cause, cause_of_exit


@pytest.mark.parametrize(
    ("peak", "cause"),
    [(None, "memory"), (Peak(1.9, 2.0), "memory"), (Peak(1.1, 2.0), "memory"), (Peak(0.4, 2.0), "killed"),
     (Peak(float("inf"), 2.0), "memory")],
)  # fmt: skip
def test_a_kill_far_from_the_limit_is_not_for_memory(peak: Peak | None, cause: Cause) -> None:
    assert cause_of_exit(-9, peak) == cause
    assert cause_of_exit(137, peak) == cause
    assert cause_of_exit(-7, peak) == "dataset"


def test_without_a_limit_of_the_job_that_of_the_machine_counts() -> None:
    assert peak_of(1.0, None).limit_gb == psutil.virtual_memory().total / 1e9
    assert str(peak_of(0.44, 2)) == "0.4 of 2.0 GB"


def test_what_a_killed_child_had_used_is_known() -> None:
    code = "import os; x = b'1' * 400_000_000; os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert used_by_children_gb(1) >= 0.4
    assert used_by_children_gb(3) == pytest.approx(3 * used_by_children_gb(1))
