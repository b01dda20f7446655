"""Progress: plain lines where nobody watches, a bar on a terminal, and nothing on standard output."""

import io
import sys
import time

import pytest

from contrails.progress import bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_at_the_end_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("packing", 3) as advance:
        for _ in range(3):
            advance(1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("packing: 3/3 (")
    assert shown.err.count("\n") == 1


def test_lines_now_and_then_with_the_rate_of_this_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with bar("packing", 100, done=40) as advance:
        for _ in range(6):
            now[0] += 2
            advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "packing: 70/100 (5.0/s, 6 s left)",
        "packing: 100/100 (5.0/s)",
    ]


def test_work_that_fails_does_not_say_that_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="stop"), bar("packing", 3) as advance:
        advance(1)
        raise RuntimeError("stop")
    assert capsys.readouterr().err == ""


def test_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("packing", 0):
        pass
    assert capsys.readouterr().err == "packing: 0/0 (0.0/s)\n"


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with bar("packing", 10, done=4) as advance:
        advance(2)
        advance(4)
    assert "packing" in terminal.getvalue()
    assert "10/10" in terminal.getvalue()
    assert capsys.readouterr().out == ""
