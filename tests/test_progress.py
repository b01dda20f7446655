"""Progress: plain lines where nobody watches, a bar on a terminal, and nothing on standard output."""

import io
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from contrails.progress import bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_line_at_the_end_where_nobody_watches(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with bar("packing", 3) as advance:
        for _ in range(3):
            now[0] += 0.5
            advance(1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "packing: 3/3 (2.0/s)\n"


def test_work_of_less_than_a_second_shows_nothing(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with bar("packing", 3) as advance:
        now[0] += 0.9
        advance(3)
    with bar("packing", 0):
        pass
    assert capsys.readouterr().err == ""


def test_lines_now_and_then_with_the_rate_of_this_run(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with bar("packing", 100, done=40) as advance:
        for _ in range(6):
            now[0] += 2
            advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "packing: 70/100 (5.0/s, 6 s left)",
        "packing: 100/100 (5.0/s)",
    ]


def test_work_that_fails_does_not_say_that_it_ended(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="stop"), bar("packing", 3) as advance:
        now[0] += 2
        advance(1)
        raise RuntimeError("stop")
    assert capsys.readouterr().err == ""


def open_terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Make a terminal of standard error; in the test itself, for pytest puts its own there between set-up and test."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    return terminal


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = open_terminal(monkeypatch)
    monkeypatch.setattr("contrails.progress._APPEARS_S", 0.01)
    with bar("packing", 10, done=4) as advance:
        end = time.monotonic() + 10
        while "packing" not in terminal.getvalue():  # before anything is finished
            assert time.monotonic() < end
            time.sleep(0.01)
        advance(2)
        advance(4)
    assert "10/10" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_no_bar_flashes_up(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, threads = open_terminal(monkeypatch), set(threading.enumerate())
    with bar("packing", 10) as advance:
        advance(10)
    with pytest.raises(RuntimeError, match="stop"), bar("packing", 10):
        raise RuntimeError("stop")
    assert terminal.getvalue() == ""
    assert set(threading.enumerate()) <= threads


@pytest.mark.parametrize("redirected", ["2> /dev/full", "2>&-"])
def test_no_work_ends_because_a_line_cannot_be_written(redirected: str) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    code = "from contrails.progress import tell; tell('a line'); raise SystemExit(9)"
    done = subprocess.run(f'{sys.executable} -c "{code}" {redirected}', shell=True, check=False)
    assert done.returncode == 9
