import os
import shlex
from pathlib import Path

import pytest

from contrails.errors import ClusterError
from contrails.submitit_pbs import client
from contrails.submitit_pbs.client import Refused, Unanswered, delete, named, parse_dsv, query, submit

Answer = tuple[int, str, str]


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(client, "RETRY_S", 0.01)
    monkeypatch.setattr(client, "PATIENCE_S", 0.0)
    return folder


def answers(folder: Path, command: str, code: int, out: str = "", err: str = "") -> None:
    """Have a client command print and return what a server's did."""
    path = folder / command
    path.write_text(f"#!/bin/sh\nprintf %s {shlex.quote(out)}\nprintf %s {shlex.quote(err)} >&2\nexit {code}\n")
    path.chmod(0o755)


ROW = "Job Id: 7.host|Job_Name=a|job_state=R|queue=workq|Resource_List.walltime=00:05:00|comment=Job run at noon\n"


def test_dsv_is_read_by_job_and_key() -> None:
    jobs = parse_dsv(ROW + ROW.replace("7.host", "8[3].host").replace("job_state=R", "job_state=X"))
    assert jobs["7.host"]["job_state"] == "R"
    assert jobs["7.host"]["Resource_List.walltime"] == "00:05:00"
    assert jobs["8[3].host"]["job_state"] == "X"
    assert parse_dsv("") == {}


def test_bars_and_equals_signs_in_values_do_no_harm() -> None:
    text = "Job Id: 7.host|job_state=Q|comment=a\\|b|Variable_List=A=1,B=x|Submit_arguments=-v A=1|job_state=F\n"
    attributes = parse_dsv(text)["7.host"]
    assert attributes["job_state"] == "Q"
    assert attributes["Variable_List"] == "A=1,B=x"
    assert attributes["comment"] == "a\\|b"


def test_a_job_whose_temporary_folder_is_gone_submits(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bin_folder / "qsub").write_text("#!/bin/sh\nmktemp >/dev/null && echo 8.host\n")
    (bin_folder / "qsub").chmod(0o755)
    monkeypatch.setenv("TMPDIR", str(bin_folder / "pbs.7.host"))
    assert submit([], "script.sh", name="a", marker="x") == "8.host"
    (bin_folder / "qsub").write_text('#!/bin/sh\necho "$TMPDIR"\n')
    monkeypatch.setenv("TMPDIR", str(bin_folder))
    assert submit([], "script.sh", name="a", marker="x") == str(bin_folder)


@pytest.mark.parametrize("code", [0, 153, 35])
def test_the_known_of_several_jobs_are_returned(bin_folder: Path, code: int) -> None:
    answers(bin_folder, "qstat", code, ROW, "qstat: Unknown Job Id 99999.host")
    assert list(query(["7.host", "99999.host"])) == ["7.host"]


def server(folder: Path, running: int, ended: int, *, history: bool) -> Path:
    """Have qstat answer for jobs 1.h, 2.h ... that run, and for others that have ended; return the log of its calls."""
    (folder / "qstat").write_text(
        "#!/usr/bin/env python3\nimport sys\n"
        f"running, ended, history = {running}, {ended}, {history}\n"
        f"open('{folder}/calls', 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
        "x, code = '-x' in sys.argv, 0\n"
        "ids = [word for word in sys.argv if word.endswith('.h')] or [f'{n}.h' for n in range(1, running + 1)]\n"
        "for id in ids:\n"
        "    number = int(id[:-2])\n"
        "    if x and not history:\n"
        "        print(f'qstat: PBS is not configured to maintain job history {id}', file=sys.stderr)\n"
        "    elif number <= running or (x and number <= running + ended):\n"
        "        print(f'Job Id: {id}|Job_Name=a|job_state={\"RF\"[number > running]}')\n"
        "    else:\n"
        "        code = 35 if history and number <= running + ended else 153\n"
        "sys.exit(code)\n"
    )
    (folder / "qstat").chmod(0o755)
    return folder / "calls"


@pytest.mark.parametrize("history", [True, False])
def test_jobs_that_run_are_found_with_a_history_and_without(bin_folder: Path, history: bool) -> None:
    calls = server(bin_folder, running=2, ended=1, history=history)
    found = query(["1.h", "2.h", "3.h", "9.h"])
    assert {job_id: row["job_state"] for job_id, row in found.items()} == (
        {"1.h": "R", "2.h": "R", "3.h": "F"} if history else {"1.h": "R", "2.h": "R"}
    )
    assert calls.read_text().splitlines() == ["-f -F dsv 1.h 2.h 3.h 9.h", "-x -f -F dsv 3.h 9.h"]


@pytest.mark.parametrize(
    ("num", "running", "history", "num_calls"),
    [(45, 45, False, 3), (1000, 1000, False, 1), (1000, 990, True, 2), (1000, 0, False, 2)],
)
def test_many_jobs_are_few_calls(bin_folder: Path, num: int, running: int, history: bool, num_calls: int) -> None:
    calls = server(bin_folder, running=running, ended=num - running, history=history)
    assert len(query([f"{number}.h" for number in range(1, num + 1)])) == (num if history else running)
    assert len(calls.read_text().splitlines()) == num_calls


@pytest.mark.parametrize("history", [True, False])
def test_jobs_of_a_name_are_those_that_run_and_then_those_that_have_ended(bin_folder: Path, history: bool) -> None:
    server(bin_folder, running=2, ended=2, history=history)
    ended = "4.h" if history else ""
    (bin_folder / "qselect").write_text(f'#!/bin/sh\n[ "$1" = -x ] && echo {ended} && exit\nprintf "1.h\\n2.h\\n"\n')
    (bin_folder / "qselect").chmod(0o755)
    assert [job_id for job_id, _ in named("a")] == (["2.h", "1.h", "4.h"] if history else ["2.h", "1.h"])
    assert [job_id for job_id, _ in named("a", ended=False)] == ["2.h", "1.h"]


@pytest.mark.parametrize(("command", "code"), [("qstat", 255), ("qstat", 162)])
def test_a_server_that_is_down_is_no_answer(bin_folder: Path, command: str, code: int) -> None:
    answers(bin_folder, command, code, err="cannot connect to server host (errno=15010)")
    with pytest.raises(Unanswered, match="qstat could not reach the PBS server"):
        query(["7.host"])


def test_a_command_that_hangs_is_no_answer(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bin_folder / "qdel").write_text("#!/bin/sh\nexec sleep 20\n")
    (bin_folder / "qdel").chmod(0o755)
    monkeypatch.setattr(client, "_TIMEOUT_S", 0.1)
    with pytest.raises(Unanswered, match="qdel did not answer"):
        delete("7.host")


def test_no_commands_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="qstat is not on the PATH"):
        query(["7.host"])


@pytest.mark.parametrize(
    ("code", "said", "advice"),
    [
        (170, "qsub: Unknown queue", "qstat -Q"),
        (187, "qsub: Unknown resource: nogpus", "pbsnodes"),
        (188, "qsub: Job violates queue and/or server resource limits", "request less"),
        (38, "qsub: would exceed queue generic's per-user limit", "wait until some end"),
        (39, "qsub: would exceed per-user limit on resource ncpus in queue workq", "wait until some end"),
        (198, "qsub: Maximum number of jobs already in queue", "wait until some end"),
        (2, "qsub: illegal -N value", "see the message"),
    ],
)
def test_a_refusal_says_what_pbs_said_and_what_to_do(bin_folder: Path, code: int, said: str, advice: str) -> None:
    answers(bin_folder, "qsub", code, err=said)
    with pytest.raises(Refused, match=f"code {code}: {said}; .*{advice}") as refused:
        submit([], "script.sh", name="a", marker="token")
    assert refused.value.pbs_code == code


@pytest.mark.parametrize("code", [0, 35, 153, 168])
def test_what_is_over_is_deleted_enough(bin_folder: Path, code: int) -> None:
    answers(bin_folder, "qdel", code)
    delete("7.host")


def test_a_job_that_may_not_be_deleted(bin_folder: Path) -> None:
    answers(bin_folder, "qdel", 159, err="qdel: Unauthorized Request  7.host")
    with pytest.raises(Refused, match="code 159"):
        delete("7.host")


def test_a_lost_answer_is_looked_for_by_its_marker(bin_folder: Path) -> None:
    answers(bin_folder, "qsub", 162, err="Connection refused")
    answers(bin_folder, "qselect", 0, "6.host\n7.host\n")
    other = ROW.replace("7.host", "6.host").strip() + "|Submit_arguments=-N a .submission_file_other.sh\n"
    answers(bin_folder, "qstat", 0, other + ROW.strip() + "|Submit_arguments=-N a .submission_file_token.sh\n")
    assert submit(["-N", "a"], "x", name="a", marker="token") == "7.host"
    answers(bin_folder, "qstat", 0, other)
    with pytest.raises(Unanswered):
        submit(["-N", "a"], "x", name="a", marker="token")
