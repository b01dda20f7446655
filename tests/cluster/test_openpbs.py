"""What contrails tells PBS and reads from it, without jobs."""

import os
import shlex
from datetime import datetime
from pathlib import Path

import pytest

from contrails.cluster import openpbs
from contrails.cluster.kerberos import parse_klist, ticket_check
from contrails.cluster.pbs.script import spec_of
from contrails.cluster.scheduler import Check, Reference, Request
from contrails.cluster.sites import Retries, Site
from contrails.errors import ClusterError

from fake_pbs import FakePbs
from slurm_site import fresh_path

SITE = Site(
    name="s", scheduler="pbs", partition="workq", account="acct", walltime_min=90, margin_s=60, num_gpus=2, num_cpus=8,
    memory_gb=1.5, prologue=("module load x",), environment=Path("envs/it's.sh"), stage_dir=Path("$SCRATCHDIR"),
    resources={"gpu_mem": "16gb", "gpu_cap": "sm_75,sm_80"}, scheduler_arguments={"M": "me@example.org"},
    retries=Retries(memory=5),
)  # fmt: skip


def request(folder: Path, **values: object) -> Request:
    environment = {"PYTHONPATH": "/a b"}
    return Request("ctnamef0a1", print, (), ("0",), environment, {"7.h": folder}, ("tear down",), **values)  # type: ignore[arg-type]


def test_the_parameters_of_a_site_are_in_command_and_script(tmp_path: Path) -> None:
    text = openpbs.preview(tmp_path, SITE, request(tmp_path, memory_gb=3))
    command, *lines = text.splitlines()
    for words in (
        "# qsub -N ctnamef0a1 -q workq -A acct", "-l walltime=01:30:00", "-M me@example.org", "ctnamef0a1.sh",
        """-l 'select=1:ncpus=8:mem=3072mb:ngpus=2:gpu_mem=16gb:gpu_cap="sm_75,sm_80"'""",
    ):  # fmt: skip
        assert words in command
    assert lines.index("module load x") < lines.index("export PYTHONPATH='/a b'")
    assert any(line.startswith("source") and "it" in line for line in lines)
    spec = spec_of(dict(shlex.split(line)[1].split("=", 1) for line in lines if line.startswith("export SUBMITIT")))
    assert (spec.chain, spec.margin_s, spec.after) == ("held", 60, [f"{tmp_path}/7.h"])
    assert (spec.budgets["KILLED"], spec.budgets["NODE_FAIL"]) == (5, 3)
    assert spec.teardown == ["tear down", 'if [ -d "$SCRATCHDIR" ]; then find "$SCRATCHDIR" -mindepth 1 -delete; fi']


def test_only_folds_have_a_next_link(tmp_path: Path) -> None:
    assert '"chain":"held"' in openpbs.preview(tmp_path, SITE, request(tmp_path))
    command = Request("ctnameg0a1", print, ())
    assert '"chain":"none"' in openpbs.preview(tmp_path, SITE, command)
    warned = SITE.model_copy(update={"next_job": "at_warning"})
    assert '"chain":"at_warning"' in openpbs.preview(tmp_path, warned, request(tmp_path))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePbs:
    """Return a PBS whose server has ended: its commands still answer."""
    fake = FakePbs(tmp_path / "pbs")
    fake.stop()
    monkeypatch.setenv("PATH", f"{fake.bin}:{os.environ['PATH']}")
    monkeypatch.setenv("PATH", fresh_path(tmp_path / "bin", klist="exit 1"))
    openpbs._nodes.cache_clear()
    return fake


def test_what_doctor_says(fake: FakePbs) -> None:
    def check(**keys: object) -> dict[str, Check]:
        return {
            found.name: found for found in openpbs.check(Site.model_validate({"name": "s", "scheduler": "pbs"} | keys))
        }

    good = check(partition="workq", memory_gb=1)
    assert {name: found.holds for name, found in good.items()} == {
        "queue": True, "a node for the job": True, "memory of a job": True,
    }  # fmt: skip
    bad = check(partition="nowhere", num_cpus=1000)
    assert {name for name, found in bad.items() if not found.holds} == set(good)
    assert "Unknown queue" in bad["queue"].found
    assert "ncpus=1000: nodes have" in bad["a node for the job"].found
    assert "400 MB" in bad["memory of a job"].found


def test_what_no_node_can_run_is_not_submitted(fake: FakePbs, tmp_path: Path) -> None:
    greedy = Site(name="s", scheduler="pbs", num_cpus=1000)
    announced: list[Path] = []
    with pytest.raises(ClusterError, match="no node can ever run the job ctnameg0a1: ncpus=1000: nodes have"):
        openpbs.submit(tmp_path / "jobs", greedy, Request("ctnameg0a1", print, ()), announced.append, print)
    assert (announced, fake.ids()) == ([], [])


def test_a_lost_job_is_found_by_its_name(fake: FakePbs, tmp_path: Path) -> None:
    site = Site(name="s", scheduler="pbs")
    accepted: list[str] = []
    announced: list[Path] = []
    job_id = openpbs.submit(tmp_path, site, Request("ctnameg0a1", print, ()), announced.append, accepted.append)
    assert accepted == [job_id]
    now = datetime.now().timestamp()
    (job,) = openpbs.look([Reference(name, tmp_path, now) for name in ("ctnameg0a1", "ctnameg0a2")]).values()
    assert (job.job_id, job.name, job.state) == (job_id, "ctnameg0a1", "waiting")
    assert openpbs.look([Reference("ctnameg0a1", tmp_path, now + 1000)]) == {}
    assert openpbs.look([Reference("ctnameg0a1", tmp_path, now, job_id)]) == {"ctnameg0a1": job}
    assert openpbs.look([Reference("ctnameg0a2", tmp_path, now, job_id)]) == {}
    assert sorted(path.name for path in tmp_path.glob(f"{job_id}*")) == [
        f"{job_id}_submission.sh",
        f"{job_id}_submitted.pkl",
    ]


KLIST = """Ticket cache: FILE:/tmp/krb5cc_1000
Default principal: user@META

Valid starting       Expires              Service principal
11/21/2026 10:00:00  11/21/2026 20:00:00  krbtgt/META@META
\trenew until 11/22/2026 10:00:00
"""


@pytest.mark.parametrize(
    ("text", "hour", "holds", "found"),
    [(KLIST, 12, True, "lasts for 8.0 h more"), (KLIST, 19, True, "1.0 h"), (KLIST, 21, False, "has ended")],
)
def test_a_ticket_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, hour: int, holds: bool, found: str
) -> None:
    (tmp_path / "klist.txt").write_text(text)
    monkeypatch.setenv("PATH", fresh_path(tmp_path / "bin", klist=f"cat {tmp_path}/klist.txt"))
    check = ticket_check(datetime(2026, 11, 21, hour))
    assert check is not None
    assert (check.holds, found in check.found) == (holds, True)
    assert parse_klist("klist: No credentials cache found") is None
