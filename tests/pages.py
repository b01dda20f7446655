"""The project's pages: where they lie, their blocks of code, and the commands in them."""

import re
import shlex
from pathlib import Path

import contrails

CLONE = Path(contrails.__file__).parents[1]
_FOLDERS = ("contrails", "jobs", "envs", "filelists", "scripts", "tests")
TEXTS = sorted([*CLONE.glob("*.md"), *(path for folder in _FOLDERS for path in (CLONE / folder).rglob("*.md"))])
PAGES = [path for path in TEXTS if path.name == "README.md"]
"""Texts that say what to type today; the others tell what changed or was tried."""

CODE = re.compile(r"`([^`]+)`")
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """Return a page without its blocks of code."""
    return _FENCE.sub("", text)


def blocks(path: Path, language: str) -> list[str]:
    """Return a page's blocks of code in a language, such as sh."""
    return [block for _, of, block in _FENCE.findall(path.read_text()) if of == language]


def shell_lines(path: Path) -> list[str]:
    """Return the lines of a page's blocks for the shell; a line that goes on in the next one is one line."""
    return "\n".join(blocks(path, "sh")).replace("\\\n", " ").splitlines()


def commands(path: Path) -> list[list[str]]:
    """Return the words after `contrails` of each command of a page, in blocks for the shell and in its text."""
    inline = [" ".join(code.split()) for code in CODE.findall(prose(path.read_text()))]
    typed = [line.removeprefix("nohup ") for line in (*shell_lines(path), *inline)]
    split = [shlex.split(line, comments=True) for line in typed if line.startswith("contrails ")]
    return [[word for word in words[1:] if word != "&"] for words in split]
