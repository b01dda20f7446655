"""The pictures of README and `scripts/pictures`, which makes them."""

import io
import re
import runpy
import shlex
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from contrails.errors import NodeError

from pages import CLONE
from typed_commands import parse

_MAKE = CLONE / "scripts/images/make.py"
_PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
_COMMAND = re.compile(r'"contrails ([^"|]*)')
_MOST_BYTES = 250_000


@pytest.fixture(scope="module")
def make() -> dict[str, Any]:
    return runpy.run_path(str(_MAKE))


def lines(svg: str) -> list[str]:
    """Return the lines of text that an SVG shows, from top to bottom."""
    rows: dict[float, str] = {}
    for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        at = float(text.attrib["y"]) if "clip-path" in text.attrib else -1.0  # without: the title
        rows[at] = rows.get(at, "") + (text.text or "").replace("\xa0", " ")
    return [rows[at].rstrip() for at in sorted(rows)]


def test_the_pictures_of_the_first_page_are_there_and_described() -> None:
    pictures = _PICTURE.findall((CLONE / "README.md").read_text())
    assert [path for _, path in pictures] == ["scripts/images/killed.svg", "scripts/images/report.png"]
    for words, path in pictures:
        assert len(words.split()) > 10
        assert (CLONE / path).stat().st_size <= _MOST_BYTES


def test_the_terminal_shows_a_fold_that_is_killed_and_ends_as_an_undisturbed_one() -> None:
    svg = (CLONE / "scripts/images/killed.svg").read_text()
    assert re.findall(r"https?://[^\"' )]*", svg) == ["http://www.w3.org/2000/svg"]  # a page lets an image load nothing
    shown = lines(svg)
    assert len(shown) <= 35
    assert max(map(len, shown)) <= 100
    typed = [line[2:] for line in shown if line.startswith("$ ")]
    assert [command.split()[:2] for command in typed if command.startswith("contrails")] == [
        ["contrails", verb] for verb in ("submit", "status", "status", "resume", "status")
    ]
    assert typed[2].startswith("kill -9 ")
    killed, undisturbed = shown[-2:]
    assert re.match(r"[0-9a-f]{16}  runs/default/folds/1/weights/epoch0030-a002", killed)
    assert re.match(r"[0-9a-f]{16}  runs/undisturbed/folds/1/weights/epoch0030-a001", undisturbed)
    assert killed[:16] == undisturbed[:16]


def test_the_commands_of_the_script_parse() -> None:
    commands = _COMMAND.findall(_MAKE.read_text())
    assert len(commands) > 10
    for command in commands:
        parse(shlex.split(command))


def test_a_terminal_shows_what_commands_print(make: dict[str, Any]) -> None:
    terminal = make["Terminal"]()
    terminal.type(r"printf 'plain\n   \n\033[32mgreen\033[0m <a&b>\n'; echo said >&2")
    svg = terminal.svg("A title")
    assert lines(svg)[0] == "A title"
    assert lines(svg)[-3:] == ["plain", "green <a&b>", "said"]
    assert "#3fb950" in svg
    with pytest.raises(subprocess.CalledProcessError):
        terminal.type("contrails status --no-such-option")


def test_the_empty_part_of_a_screenshot_is_left_out(make: dict[str, Any]) -> None:
    screen = Image.new("RGB", (60, 200), (245, 246, 248))
    screen.paste((26, 127, 75), (10, 10, 50, 80))
    picture = Image.open(io.BytesIO(make["smaller"](screen)))
    assert picture.size == (60, 80 + make["MARGIN"])
    assert picture.convert("RGB").getpixel((20, 20)) == (26, 127, 75)


def test_without_a_browser_the_report_stays_as_it_is(
    make: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NodeError, match=r"report\.png stays as it was; install Chromium") as caught:
        make["find_browser"]()
    assert caught.value.exit_code == 9
