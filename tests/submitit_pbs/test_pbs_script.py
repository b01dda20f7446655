import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from submitit.core.utils import DelayedSubmission, JobPaths

from contrails.errors import ClusterError, RecipeError
from contrails.submitit_pbs import client, script
from contrails.submitit_pbs.in_job.clock import Clock
from contrails.submitit_pbs.in_job.environment import PbsJobEnvironment
from contrails.submitit_pbs.script import Parameters, make_spec, memory_mb, render, select, with_memory


def test_select_says_what_a_node_must_have() -> None:
    parameters = Parameters(
        cpus_per_task=2,
        tasks_per_node=3,
        mem_gb=1.5,
        gpus_per_node=1,
        gpu_mem="20gb",
        gpu_cap="compute_75,compute_80",
        scratch_local="20gb",
        cluster="galdor",
    )
    assert select(parameters) == (
        '1:ncpus=6:mpiprocs=3:mem=1536mb:ngpus=1:gpu_mem=20gb:gpu_cap="compute_75,compute_80":'
        "scratch_local=20gb:cluster=galdor"
    )


def test_options_of_qsub(tmp_path: Path) -> None:
    parameters = Parameters(
        name="a b", timeout_min=90, queue="gpu", account="acct", project="proj", additional_parameters={"-M": "me@x"}
    )
    spec = make_spec(parameters, tmp_path, script.HELD)
    line = " ".join(spec.qsub)
    assert line.startswith("-N a_b -q gpu -A acct -P proj -l select=1:ncpus=1 -l walltime=01:30:00 -r y")
    assert line.endswith(f"-j oe -k oed -o {tmp_path}/ -W umask=077 -M me@x")
    assert (spec.walltime_s, spec.margin_s) == (5400, 90)
    assert make_spec(Parameters(walltime="00:01:00"), tmp_path, script.NONE).margin_s == 30


def test_only_the_memory_of_the_node_grows() -> None:
    options = ["-l", "select=1:ncpus=1:mem=512mb:gpu_mem=20gb"]
    assert memory_mb(options) == 512
    assert with_memory(options, 768) == ["-l", "select=1:ncpus=1:mem=768mb:gpu_mem=20gb"]
    assert memory_mb(["-l", "select=1:ncpus=1:gpu_mem=20gb"]) is None


def test_the_script_hands_values_on_unchanged_and_keeps_the_exit_code(tmp_path: Path) -> None:
    spec = make_spec(Parameters(additional_parameters={"-M": 'it\'s $HOME `id` "q"'}), tmp_path, script.NONE)
    text = render(spec, 'printf %s "$SUBMITIT_PBS_SPEC"; (exit 7)', ["echo before >&2"])
    done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=False)
    assert script.Spec(**json.loads(done.stdout)) == spec
    assert done.stderr.split() == ["before"]
    assert done.returncode == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"quue": "gpu"}, "unknown parameter 'quue'.*did you mean 'queue'"),
        ({"nodes": 2}, "one node"),
        ({"chain": "hold"}, "pbs_chain = 'hold'.*did you mean 'held'"),
        ({"budgets": {"TIMEOT": 1}}, "did you mean 'TIMEOUT'"),
        ({"walltime": "1h"}, "expected HH:MM:SS, found '1h'"),
        ({"timeout_min": 0}, "more than 0 s"),
        ({"setup": "module load"}, "expected a list of texts"),
    ],
)
def test_wrong_parameters(values: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Parameters.of(values)


def test_the_clock_asks_pbs_before_it_says_that_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def query(ids: list[str], timeout_s: float) -> dict[str, dict[str, str]]:
        asked.append(ids)
        return {"7.host": {"Resource_List.walltime": "00:10:00"}}

    monkeypatch.setattr(client, "query", query)
    clock = Clock("7.host", time.time() - 50, walltime_s=60, margin_s=20)
    assert 9 < clock.seconds_left() < 11
    assert not clock.is_near_end()  # qextend moved the limit
    assert not clock.is_near_end()
    assert asked == [["7.host"]]
    assert 540 < clock.seconds_left() < 551


def test_a_clock_that_gets_no_answer_keeps_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def query(ids: list[str], timeout_s: float) -> dict[str, dict[str, str]]:
        raise ClusterError("down")

    monkeypatch.setattr(client, "query", query)
    clock = Clock("7.host", time.time() - 50, walltime_s=60, margin_s=20)
    assert clock.is_near_end()
    assert clock.is_near_end()


def test_there_is_no_clock_outside_of_a_job() -> None:
    with pytest.raises(ClusterError, match="SUBMITIT_PBS_SPEC is not set"):
        Clock.of_this_job({})


def test_a_warning_counts_as_a_timeout_however_early_it_comes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    delayed = DelayedSubmission(print)
    delayed.set_timeout(timeout_min=3 * 24 * 60, max_num_timeout=3)
    PbsJobEnvironment()._handle_signals(JobPaths(tmp_path, "7.host"), delayed)
    assert handlers[signal.SIGUSR2].__self__.has_timed_out()
