"""What contrails tells PBS and reads from it, without jobs."""

import itertools
import os
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from contrails.cluster.schedulers import pbs as openpbs
from contrails.cluster.schedulers.base import Check, Reference, Request
from contrails.cluster.schedulers.kerberos import parse_klist, ticket_check
from contrails.cluster.schedulers.sites import Retries, Site
from contrails.errors import ClusterError
from contrails.files import read_toml
from contrails.processes import Process
from contrails.recipe.reading import parse
from contrails.submitit_pbs.chain import Chain
from contrails.submitit_pbs.client import Unanswered
from contrails.submitit_pbs.job import PbsJob
from contrails.submitit_pbs.script import spec_of
from contrails.submitit_pbs.watcher import PbsInfoWatcher

from fake_pbs import FakePbs
from pbs_site import REAL
from replayed import Replayed
from slurm_site import fresh_path

SITE = Site(
    name="s", scheduler="pbs", partition="workq", account="acct", walltime_min=90, margin_s=60, num_gpus=2, num_cpus=8,
    memory_gb=1.5, prologue=("module load x",), environment=Path("envs/it's.sh"), stage_dir=Path("$SCRATCHDIR"),
    resources={"gpu_mem": "16gb", "gpu_cap": "sm_75,sm_80"}, scheduler_arguments={"M": "me@example.org"},
    retries=Retries(memory=5),
)  # fmt: skip


def request(folder: Path, **values: object) -> Request:
    environment = {"PYTHONPATH": "/a b"}
    return Request("ctnamef0a1", "builtins:print", (), ("0",), environment, {"7.h": folder}, ("tear down",), **values)  # type: ignore[arg-type]


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
    assert spec.teardown == [
        f"python=({sys.executable})",
        "tear down",
        (
            'if [ -d "$SCRATCHDIR" ]; then find "$SCRATCHDIR" -mindepth 1 -maxdepth 1 '
            '! -name "$(basename -- "${CONTRAILS_CONTAINER:-.}")" -exec rm -rf -- {} +; fi'
        ),
    ]


def test_a_profile_can_avoid_a_cluster(tmp_path: Path) -> None:
    path = tmp_path / "site.toml"
    path.write_text('scheduler = "pbs"\n[resources]\ncl_old = false\n')
    site = parse(Site, {"name": "s"} | read_toml(path, "a site profile"), str(path))
    assert ":cl_old=False " in openpbs.preview(tmp_path, site, request(tmp_path))


def test_what_metacentrum_asks_for_is_in_the_command(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[3] / "jobs/sites/metacentrum.toml"
    values = {"name": "metacentrum"} | read_toml(shipped, "a site profile")
    chosen = parse(Site, values, str(shipped))
    command = shlex.split(openpbs.preview(tmp_path, chosen, request(tmp_path)).splitlines()[0])
    caps = '"sm_75,sm_80,sm_86,sm_89,sm_90,sm_100,sm_120"'
    select = f"select=1:ncpus=4:mem=24576mb:ngpus=1:gpu_mem=16gb:gpu_cap={caps}:scratch_local=40gb"
    assert {select, "walltime=24:00:00"} <= set(command)
    assert "-q" not in command  # the server chooses the queue
    values["resources"] = {"scratch_shm": True, "cluster": "^galdor", "cl_zia": False, "brno": True}
    image = "PBS_SINGULARITY_IMAGE=/storage/brno2/home/me/image.sif"
    values["scheduler_arguments"] = {"l": "place=exclhost", "v": image, "M": "me@example.org", "m": "ae"}
    chosen = parse(Site, values, "s.toml")
    command = shlex.split(openpbs.preview(tmp_path, chosen, request(tmp_path)).splitlines()[0])
    asked = "cluster=^galdor:scratch_shm=True:cl_zia=False:brno=True"
    assert f"select=1:ncpus=4:mem=24576mb:ngpus=1:{asked}" in command
    pairs = list(itertools.pairwise(command))
    assert {("-l", "place=exclhost"), ("-v", image), ("-M", "me@example.org"), ("-m", "ae")} <= set(pairs)


def test_only_folds_have_a_next_link(tmp_path: Path) -> None:
    assert '"chain":"held"' in openpbs.preview(tmp_path, SITE, request(tmp_path))
    command = Request("ctnameg0a1", "builtins:print", ())
    assert '"chain":"none"' in openpbs.preview(tmp_path, SITE, command)
    warned = SITE.model_copy(update={"next_job": "at_warning"})
    assert '"chain":"at_warning"' in openpbs.preview(tmp_path, warned, request(tmp_path))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, history: bool) -> FakePbs:
    """Return a PBS whose server has ended: its commands still answer."""
    if REAL:
        pytest.skip("needs a server that starts no jobs")
    fake = FakePbs(tmp_path / "pbs", history=history)
    fake.stop()
    monkeypatch.setenv("PATH", f"{fake.bin}:{os.environ['PATH']}")
    monkeypatch.setenv("PATH", fresh_path(tmp_path / "bin", klist="exit 1"))
    monkeypatch.setattr(PbsJob, "watcher", PbsInfoWatcher())
    return fake


def doctor(**keys: object) -> dict[str, Check]:
    site = Site.model_validate({"name": "s", "scheduler": "pbs"} | keys)
    return {found.name: found for found in openpbs.check(site)}


def test_what_doctor_says(fake: FakePbs, history: bool) -> None:
    good = doctor(partition="workq", memory_gb=1)
    assert {name: found.holds for name, found in good.items()} == dict.fromkeys(
        ("server", "job history", "queue", "resources", "a node for the job", "memory of a job"), True
    )
    assert ("kept for" if history else "off, the default") in good["job history"].found
    bad = doctor(partition="nowhere", num_cpus=1000)
    wrong = {"queue", "a node for the job", "memory of a job"}
    assert {name for name, found in bad.items() if not found.holds} == wrong
    assert "Unknown queue" in bad["queue"].found
    assert "ncpus=1000: nodes have" in bad["a node for the job"].found
    assert "400 MB" in bad["memory of a job"].found


def test_doctor_does_not_pass_what_qsub_refuses(fake: FakePbs, tmp_path: Path) -> None:
    keys = {"num_gpus": 1, "resources": {"gpu_mem": "16gb"}}
    found = doctor(**keys)
    assert "PBS knows no resource ngpus, gpu_mem" in found["resources"].found
    assert "num_gpus and [resources]" in found["resources"].advice
    assert found["a node for the job"].found == "ngpus=1: nodes have none"
    site = Site.model_validate({"name": "s", "scheduler": "pbs"} | keys)
    with pytest.raises(ClusterError, match="ngpus=1: nodes have none"):
        openpbs.submit(tmp_path / "jobs", site, Request("ctnameg0a1", "builtins:print", ()), print, print)
    fake.configure(resources=["ngpus", "gpu_mem"], node={"ncpus": "8", "mem": "64gb", "ngpus": "2"})
    assert all(check.holds for name, check in doctor(**keys).items() if name != "memory of a job")


def test_doctor_tells_a_limit_on_jobs(fake: FakePbs) -> None:
    fake.configure(max_queued=1)
    assert not doctor()["limit of jobs"].holds
    fake.configure(max_queued=5)
    assert doctor()["limit of jobs"].holds
    assert doctor()["limit of jobs"].found.startswith("5 per user")


def test_what_no_node_can_run_is_not_submitted(fake: FakePbs, tmp_path: Path) -> None:
    greedy = Site(name="s", scheduler="pbs", num_cpus=1000)
    announced: list[Path] = []
    with pytest.raises(ClusterError, match="no node can ever run the job ctnameg0a1: ncpus=1000: nodes have"):
        openpbs.submit(tmp_path / "jobs", greedy, Request("ctnameg0a1", "builtins:print", ()), announced.append, print)
    assert (announced, fake.ids()) == ([], [])


def test_a_lost_job_is_found_by_its_name(fake: FakePbs, tmp_path: Path) -> None:
    site = Site(name="s", scheduler="pbs")
    accepted: list[tuple[str, Process | None]] = []
    announced: list[Path] = []
    request = Request("ctnameg0a1", "builtins:print", ())
    job_id = openpbs.submit(tmp_path, site, request, announced.append, lambda *said: accepted.append(said))
    assert accepted == [(job_id, None)]
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


def submitted(folder: Path, name: str, **keys: object) -> Reference:
    site = Site.model_validate({"name": "s", "scheduler": "pbs"} | keys)
    job_id = openpbs.submit(folder, site, Request(name, "builtins:print", (), ("0",)), print, print)
    return Reference(name, folder, datetime.now().timestamp(), job_id)


@pytest.mark.parametrize(
    ("comment", "said", "stuck"),
    [
        ("Can Never Run: Insufficient amount of resource: ncpus (R: 8 A: 4 T: 4)", "no node can ever satisfy it", True),
        ("Not Running: Insufficient amount of resource: ncpus (R: 4 A: 0 T: 8)", "starts when they have ended", False),
        ("Not Running: User has reached queue workq running job limit.", "a limit on running jobs", False),
        ("Not Running: Queue not started.", "the queue is stopped", False),
    ],
)
def test_a_job_that_waits_says_what_for(fake: FakePbs, tmp_path: Path, comment: str, said: str, stuck: bool) -> None:
    job = submitted(tmp_path, "ctnameg0a1", num_cpus=4)
    fake.alter(str(job.job_id), comment=comment)
    found = openpbs.look([job])["ctnameg0a1"]
    assert (found.state, found.stuck) == ("waiting", stuck)
    assert found.native.startswith(f"PENDING ({comment}; ")
    assert said in found.native


@pytest.mark.parametrize(
    ("node", "state", "said", "stuck"),
    [
        ({"ncpus": "2", "mem": "64gb"}, "free", "no node has it: ncpus=4: nodes have 2", True),
        ({"ncpus": "8", "mem": "64gb"}, "offline", "are down or offline: fake1 is offline", False),
    ],
)
def test_a_job_that_waits_for_nodes_says_which(
    fake: FakePbs, tmp_path: Path, node: dict[str, str], state: str, said: str, stuck: bool
) -> None:
    job = submitted(tmp_path, "ctnameg0a1", num_cpus=4)
    fake.configure(node=node, node_state=state)
    fake.alter(str(job.job_id), comment="Not Running: Insufficient amount of resource: ncpus (R: 4 A: 0 T: 8)")
    found = openpbs.look([job])["ctnameg0a1"]
    assert found.stuck == stuck
    assert said in found.native


def test_a_suspended_job_is_not_running(fake: FakePbs, tmp_path: Path) -> None:
    job = submitted(tmp_path, "ctnameg0a1")
    fake.alter(str(job.job_id), state="S", run_count=1, comment="Not Running: Not enough free nodes available")
    found = openpbs.look([job])["ctnameg0a1"]
    assert found.state == "suspended"
    assert "it continues where it is" in found.native


def test_a_next_link_alone_is_the_job(fake: FakePbs, tmp_path: Path) -> None:
    """The answer of its submission was lost, and its first link has ended."""
    job = submitted(tmp_path, "ctnamef0a1")
    Chain(tmp_path, str(job.job_id)).append("start", link=1, job_id=job.job_id, token="")
    marker = f"SUBMITIT_PBS_FIRST_ID={job.job_id},SUBMITIT_PBS_LINK=2"
    done = subprocess.run(
        ["qsub", "-N", "ctnamef0a1", "-v", marker], input="true", text=True, capture_output=True, check=True
    )
    fake.alter(str(job.job_id), state="F")
    fake.purge()
    found = openpbs.look([replace(job, job_id=None)])["ctnamef0a1"]
    assert (found.job_id, found.state) == (job.job_id, "waiting")
    openpbs.cancel([replace(job, job_id=None)])
    assert fake.calls("qdel") == [f"qdel {done.stdout.strip()}"]


def test_no_answer_is_no_word_about_a_job(fake: FakePbs, tmp_path: Path) -> None:
    job = submitted(tmp_path, "ctnamef0a1")
    fake.go_down(60)
    with pytest.raises(Unanswered):
        openpbs.look([job])
    with pytest.raises(Unanswered):
        openpbs.look([replace(job, job_id=None)])
    with pytest.raises(Unanswered):
        openpbs.cancel([job])


def test_memory_is_bounded_by_the_largest_node(fake: FakePbs) -> None:
    site = Site(name="s", scheduler="pbs", num_cpus=4)
    assert openpbs.largest_memory_gb(site) == 64
    assert openpbs.largest_memory_gb(site.model_copy(update={"num_cpus": 100})) is None


KLIST = """Ticket cache: FILE:/tmp/krb5cc_1000
Default principal: user@META

Valid starting       Expires              Service principal
11/21/2026 10:00:00  11/21/2026 20:00:00  krbtgt/META@META
\trenew until 11/22/2026 10:00:00
"""


@pytest.mark.parametrize(
    ("text", "hour", "holds", "found"),
    [(KLIST, 12, True, "valid for 8.0 h more"), (KLIST, 19, True, "1.0 h"), (KLIST, 21, False, "has expired")],
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


def judged(job_id: str, cause: str | None, *, lacked_memory: bool = False) -> dict[str, Any]:
    return {"event": "judged", "job_id": job_id, "cause": cause, "lacked_memory": lacked_memory}


START = {"event": "start", "link": 1, "job_id": "6.h", "token": "a"}
HERE = START | {"link": 2, "job_id": "7.h"}
NEXT = {"event": "successor", "link": 2, "job_id": "7.h", "after": "6.h"}


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        ([judged("7.h", "TIMEOUT")], "walltime"),
        ([judged("7.h", "NODE_FAIL")], "node"),
        ([judged("7.h", "PREEMPTED")], "preemption"),
        ([judged("7.h", "OUT_OF_MEMORY", lacked_memory=True)], "memory"),
        ([judged("7.h", "KILLED", lacked_memory=True)], "memory"),
        ([judged("7.h", "KILLED")], "killed"),
        ([judged("7.h", "LOST")], "lost"),
        ([judged("7.h", None)], "lost"),  # it handed over, and its fold has not said so
        ([judged("5.h", "TIMEOUT")], "lost"),
        ([HERE, judged("7.h", "TIMEOUT")], "preemption"),  # PBS has run this link again
        ([judged("6.h", "NODE_FAIL"), {"event": "replaced", "job_id": "6.h"}, NEXT, judged("7.h", None)], "node"),
    ],
)
def test_why_a_job_was_started_again(chain: Chain, rows: list[dict[str, Any]], cause: str) -> None:
    for row in (START, HERE, *rows):
        chain.append(**row)
    assert openpbs.why_restarted(openpbs.this_job()) == cause


@pytest.mark.parametrize(
    ("code", "left_with"), [(0, 0), (4, 4), (8, 8), (143, 143), *((code, 8) for code in (75, 255, 9, 135, 137, 140))]
)
def test_a_job_that_is_given_up_leaves_with_a_code_after_which_no_link_follows(code: int, left_with: int) -> None:
    assert openpbs.last_code(code) == left_with


@pytest.mark.parametrize(
    ("walltime", "left_s"), [("01:00:00", 3600), ("02:00:00", 7200), (None, 3600), ("no answer", 3600)]
)
def test_the_end_of_a_link_is_asked_for(pbs: Replayed, walltime: str | None, left_s: float) -> None:
    said = f"Job Id: 7.h|Job_Name=ctf0a1|job_state=R{f'|Resource_List.walltime={walltime}' if walltime else ''}\n"
    pbs.say({"qstat": said}, code=255 if walltime == "no answer" else 0)
    assert openpbs.end_time(openpbs.this_job()) - time.time() == pytest.approx(left_s, abs=60)


def test_a_job_with_a_tombstone_stands_cancelled(chain: Chain) -> None:
    here = openpbs.this_job()
    assert openpbs.standing(here) == "running"
    chain.cancel()
    assert openpbs.standing(here) == "cancelled"
