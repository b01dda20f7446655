"""The project's pages: links lead to files and headings, commands parse, examples and names of code are right."""

import os
import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from contrails.cluster.schedulers.sites import Site
from contrails.inputs.composites import check_composite
from contrails.recipe.reading import parse as parse_section
from contrails.recipe.recipe import Recipe

from pages import CLONE, CODE, PAGES, TEXTS, blocks, commands, prose, shell_lines
from typed_commands import parse

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_NAME_IN_MODULE = re.compile(r"`(\w+)` in\s+`(contrails/[\w/]+\.py)`")


def name(path: Path) -> str:
    return str(path.relative_to(CLONE))


def anchors(text: str) -> set[str]:
    """Return what links to the headings of a page are called, as GitHub does it."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        repeated = sum(re.fullmatch(rf"{re.escape(anchor)}(-\d+)?", other) is not None for other in found)
        found.add(f"{anchor}-{repeated}" if repeated else anchor)
    return found


def wrong_links(path: Path) -> list[str]:
    """Return the relative links of a page that lead to no file or to no heading."""
    wrong = []
    for link in _LINK.findall(prose(path.read_text())):
        if re.match(r"\w+:", link):
            continue  # another machine's
        file, _, heading = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        exists = target.is_relative_to(CLONE) and target.exists()
        if not exists or (heading and heading not in anchors(target.read_text())):
            wrong.append(link)
    return wrong


def test_the_pages_are_found() -> None:
    assert {"README.md", "CHANGES.md", "jobs/README.md", "contrails/submitit_pbs/PBS.md"} <= {*map(name, TEXTS)}


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    assert wrong_links(path) == []


def test_a_dead_link_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("test_pages.CLONE", tmp_path)
    page = tmp_path / "README.md"
    page.write_text(
        "# A, b\n## A b\n[1](#a-b) [2](#a-b-1) [3](#c) [4](README.md#a-b) [5](gone.md) [6](../) [7](https://a.b)\n"
        "```sh\n# c\necho [8](gone)\n```\n"
    )
    assert wrong_links(page) == ["#c", "gone.md", "../"]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_parse(path: Path) -> None:
    wrong = []
    for words in commands(path):
        try:
            parse(words)
        except click.UsageError as error:
            wrong.append(f"contrails {shlex.join(words)}: {error.format_message()}")
    assert wrong == []


def test_a_command_is_found_wherever_it_stands(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(
        "`contrails status first`, `nohup contrails sync\nfirst --follow &`, not `contrails/cli` of `contrails`.\n"
        "```sh\ncontrails submit \\\n  --folds 5  # all\nscripts/test\n```\n```toml\n# contrails no command\n```\n"
    )
    assert commands(page) == [["submit", "--folds", "5"], ["status", "first"], ["sync", "first", "--follow"]]


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_modules_that_are_named_exist(path: Path) -> None:
    named = set(re.findall(r"\b(?:contrails|tests|scripts)/[\w/]+\.py\b", path.read_text()))
    assert [module for module in sorted(named) if not (CLONE / module).is_file()] == []
    for word, module in _NAME_IN_MODULE.findall(path.read_text()):
        assert re.search(rf"\b{word}\b", (CLONE / module).read_text()), f"{word} is not in {module}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_scripts_that_are_typed_exist(path: Path) -> None:
    typed = [line.split() for line in shell_lines(path) if line.startswith(("scripts/", "envs/"))]
    assert [words for words in typed if not os.access(CLONE / words[0], os.X_OK)] == []
    measured = [words[1] for words in typed if words[0] == "scripts/bench"]
    assert [of for of in measured if not (CLONE / "scripts/benchmarks" / f"{of}.py").is_file()] == []


def test_the_first_page_is_short() -> None:
    assert len((CLONE / "README.md").read_text().splitlines()) <= 200


@pytest.mark.parametrize("block", blocks(CLONE / "jobs/README.md", "toml"))
def test_examples_of_recipes_are_valid(block: str) -> None:
    data = {"dataset": "train.h5", "filelist": "five.csv"}
    values = tomllib.loads(block)
    values["data"] = data | values.get("data", {})
    check_composite(parse_section(Recipe, values, "jobs/README.md").data)


@pytest.mark.parametrize("block", blocks(CLONE / "jobs/sites/README.md", "toml"))
def test_examples_of_site_profiles_are_valid(block: str) -> None:
    parse_section(Site, {"name": "mycluster"} | tomllib.loads(block), "jobs/sites/README.md")


def test_the_table_of_recipes_is_complete() -> None:
    rows = re.findall(r"^\| (`.*?) \|", (CLONE / "jobs/README.md").read_text(), re.MULTILINE)
    named = {name for row in rows for name in CODE.findall(row)}
    recipes = [recipe.stem for recipe in (CLONE / "jobs").glob("*.toml")]
    assert recipes
    assert [recipe for recipe in recipes if recipe not in named] == []
