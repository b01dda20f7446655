"""The script of a Slurm job: every value of a site arrives as it was written, whatever it holds."""

import subprocess
from pathlib import Path

import pytest

from contrails.cluster.queue.names import fold_name, job_name, prefix
from contrails.cluster.schedulers import slurm, slurm_script
from contrails.cluster.schedulers.base import Request
from contrails.cluster.schedulers.sites import Site
from contrails.errors import ClusterError, LimitReached, RecipeError
from contrails.files import read_toml
from contrails.recipe.reading import parse

from slurm_site import fresh_path

HOSTILE = "a b'; touch hacked; $(touch hacked) `touch hacked` \" #"


def site(**keys: object) -> Site:
    return parse(Site, {"name": "s", "scheduler": "slurm"} | keys, "s.toml")


def test_names_of_fifteen_characters_say_run_fold_and_link(tmp_path: Path) -> None:
    first = job_name(tmp_path, fold_name(["3", "11"]), [])
    assert first == f"{prefix(tmp_path)}f3a1"
    assert len(job_name(tmp_path, "f11", [f"{prefix(tmp_path)}f11a998"])) == 15
    assert job_name(tmp_path, "f3", [first, f"{prefix(tmp_path)}f33a7"]) == f"{prefix(tmp_path)}f3a2"
    assert fold_name(["all"]) == "fA"
    assert prefix(tmp_path) != prefix(tmp_path / "other")


def test_the_parameters_of_a_site_are_in_the_script(tmp_path: Path) -> None:
    chosen = site(
        partition="gpu", account="p1", qos="long", constraint="a100|h100", walltime_min=90, margin_s=60, num_gpus=2,
        gpu_type="a100", num_cpus=8, memory_gb=1.5,
        scheduler_arguments={"reservation": "mine", "exclusive": True, "mail-user": "m@x.org", "mail-type": "END,FAIL"},
    )  # fmt: skip
    request = Request(
        "ctnamef0a1", "builtins:print", (), after={"7": Path("x"), "8": Path("x")}, exclude=("n1", "n2"), memory_gb=3
    )
    lines = slurm_script.script(tmp_path, chosen, request).splitlines()
    for line in (
        "--partition=gpu", "--account=p1", "--qos=long", "--constraint='a100|h100'", "--time=90", "--signal=USR2@60",
        "--gpus-per-node=a100:2", "--cpus-per-task=8", "--mem=3072M", "--reservation=mine", "--exclusive", "--requeue",
        "--dependency=afterok:7:8", "--exclude=n1,n2", "--job-name=ctnamef0a1", "--open-mode=append",
        "--mail-user=m@x.org", "--mail-type=END,FAIL",
    ):  # fmt: skip
        assert f"#SBATCH {line}" in lines
    assert not any("wckey" in line or "array" in line for line in lines)


def test_the_profile_of_a_large_site(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[3] / "jobs/sites/slurm-large.toml"
    chosen = parse(Site, {"name": "slurm-large"} | read_toml(shipped, "a site profile"), str(shipped))
    text = slurm_script.script(tmp_path, chosen, Request("ctnamef0a1", "builtins:print", ()))
    for line in (
        "--partition=gpu-preempt", "--account=my_project", "--qos=normal", "--constraint=nvme", "--time=1440",
        "--signal=USR2@300", "--gpus-per-node=a100:1", "--tmp=60G", "--requeue", "--mail-type=FAIL",
    ):  # fmt: skip
        assert f"#SBATCH {line}\n" in text


def test_a_fold_on_several_nodes_has_a_launcher_on_each(tmp_path: Path) -> None:
    chosen = site(num_nodes=2, num_ranks=4, num_gpus=2, num_cpus=8)
    text = slurm_script.script(tmp_path, chosen, Request("ct", "builtins:print", (), folds=("0",)))
    for line in ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=2", "--cpus-per-task=8"):
        assert f"#SBATCH {line}" in text.splitlines()
    assert " --kill-on-bad-exit=1 --wait=0 " in text
    for text in (  # what is no fold needs one node
        slurm_script.script(tmp_path, chosen, Request("ct", "builtins:print", ())),
        slurm_script.script(tmp_path, site(), Request("ct", "builtins:print", (), folds=("0",))),
    ):
        assert "#SBATCH --nodes=1" in text
        assert "--kill-on-bad-exit" not in text


def test_nothing_of_a_site_reaches_a_shell_unquoted(tmp_path: Path) -> None:
    script = tmp_path / "environment.sh"
    script.write_text("echo sourced")
    chosen = site(partition=HOSTILE, environment=script, prologue=["echo first"])
    text = slurm_script.script(tmp_path, chosen, Request("ct", "builtins:print", (), environment={"VALUE": HOSTILE}))
    # up to srun, which is not here, the script is plain shell
    shell = text.partition("# command")[0] + 'printf "%s" "$VALUE"'
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"first\nsourced\n{HOSTILE}"
    assert not (tmp_path / "hacked").exists()


def test_the_script_ends_with_the_code_of_the_launcher(tmp_path: Path) -> None:
    text = slurm_script.script(tmp_path, site(), Request("ct", "builtins:print", (), teardown=('echo "code $code"',)))
    shell = "srun() { return 9; }\n" + text
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("code 9\n", 9)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"partition": "low\n#SBATCH --uid=0"}, "partition"),
        ({"prologue": ["one\ntwo"]}, "prologue"),
        ({"scheduler_arguments": {"time": 3}}, "'time' is set by contrails itself"),
        ({"scheduler_arguments": {"--time": 3}}, "expected the long name of an argument without dashes"),
        ({"walltime_min": 0}, "walltime_min"),
        ({"num_nodes": 2, "num_ranks": 3}, "num_nodes = 2: expected a number that divides num_ranks = 3"),
        ({"num_nodes": 2, "num_ranks": 4, "num_gpus": 1}, "num_gpus = 1: expected at least 2 per node, for num_ranks"),
        ({"num_nodes": 2, "num_ranks": 2, "scheduler": "pbs"}, "num_nodes = 2: expected 1 with scheduler = 'pbs'"),
        ({"num_nodes": 2, "num_ranks": 2, "scheduler": "local"}, "num_nodes = 2: expected 1 with scheduler = 'local'"),
        ({"walltime_min": 2}, "margin_s = 120 leaves no time within walltime_min = 2: expected less than 120 seconds"),
        ({"retries": {"memori": 1}}, "unknown key retries.memori; did you mean 'memory'"),
    ],
)
def test_what_a_site_may_not_say(keys: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        site(**keys)


def test_a_path_that_slurm_would_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="Slurm replaces the character %"):
        slurm_script.script(tmp_path / "100%j", site(), Request("ct", "builtins:print", ()))


def test_a_job_of_a_job_does_not_inherit_its_allocation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "800")
    monkeypatch.setenv("SLURM_CONF", "/etc/here.conf")
    command = slurm_script.command(tmp_path / "x.sh")
    assert command[:3] == ["env", "-u", "SLURM_MEM_PER_CPU"]
    assert "SLURM_CONF" not in command
    monkeypatch.delenv("SLURM_MEM_PER_CPU")
    assert slurm_script.command(tmp_path / "x.sh") == ["sbatch", str(tmp_path / "x.sh")]


@pytest.mark.parametrize(
    ("said", "kind"),
    [("sbatch: error: AssocMaxSubmitJobLimit", LimitReached), ("sbatch: error: invalid partition", ClusterError)],
)
def test_a_limit_on_jobs_is_told_from_other_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, kind: type[ClusterError]
) -> None:
    monkeypatch.setenv("PATH", fresh_path(tmp_path / "bin", sbatch=f'echo "{said}" >&2; exit 1', srun="true"))
    with pytest.raises(ClusterError, match=said) as refused:
        slurm.submit(tmp_path, site(), Request("ctnamef0a1", "builtins:print", (), ("0",)), print, print)
    assert refused.type is kind
