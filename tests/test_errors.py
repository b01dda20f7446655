"""Errors: one family with documented exit codes, and hints that name the nearest choice."""

from pathlib import Path

import pytest

from contrails import errors
from contrails.cli import main
from contrails.errors import ContrailsError, choices, nearest

FAMILY = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ContrailsError)]


def test_each_kind_has_a_code_of_its_own_that_the_page_of_sites_documents() -> None:
    codes = [kind.exit_code for kind in FAMILY if ContrailsError in (kind, *kind.__bases__)]
    assert len(set(codes)) == len(codes)
    names = [kind.code for kind in FAMILY]
    assert len(set(names)) == len(names)
    page = (Path(__file__).parents[1] / "jobs/sites/README.md").read_text()
    for kind in FAMILY:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {kind.exit_code} | "))
        assert kind is ContrailsError or f"`{kind.code}`" in row, kind
    # 0 is success, 1 a bug, 2 click's; 126 and more belong to shells and signals
    assert all(3 <= kind.exit_code < 126 for kind in FAMILY if kind is not ContrailsError)


@pytest.mark.parametrize("kind", FAMILY)
def test_main_returns_the_code_and_prints_the_message(
    kind: type[ContrailsError], own_streams: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def failing(prog_name: str, standalone_mode: bool) -> None:
        raise kind("disk on fire")

    monkeypatch.setattr(main, "cli", failing)
    with pytest.raises(SystemExit) as caught:
        main.main()
    assert caught.value.code == kind.exit_code
    assert capfd.readouterr().err == "error: disk on fire\n"


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("ashh", ["bands", "ash"], "did you mean 'ash'? Known: ash, bands"),
        ("zzz", {"b", "a"}, "Known: a, b"),
        ("x", [], "Known: (none)"),
    ],
)
def test_choices_end_a_message(name: str, known: list[str], expected: str) -> None:
    assert choices(name, known) == expected


def test_the_nearest_of_many_end_a_message() -> None:
    many = [f"resnet{number}" for number in range(18, 60)] + ["vgg11"]
    assert nearest("vgg1", many) == "did you mean 'vgg11'?"
    assert nearest("zzz", many) == "expected one of 43 names, such as 'resnet18'"
