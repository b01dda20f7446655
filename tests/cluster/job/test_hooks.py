"""Commands of the site profile that are told how a fold ended."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MakeRun

from contrails.cli.main import cli
from contrails.cluster.job import hooks
from contrails.cluster.job.hooks import finish_hooks, start_hook
from contrails.errors import RecipeError
from contrails.recipe.recipe import to_toml
from contrails.runs.folder import Run

from local_site import Site, eventually

_TELL = "import json, sys; open(sys.argv[1], 'a').write(json.dumps(sys.argv[2:]) + chr(10))"


@pytest.fixture
def site(tmp_path: Path, tiny_data: Path) -> Iterator[Site]:
    site = Site(tmp_path, tiny_data)
    yield site
    site.end_everything()


def write_profile(site: Site, told: Path) -> None:
    folder = site.root / "jobs" / "sites"
    folder.mkdir(parents=True)
    command = {event: [sys.executable, "-c", _TELL, str(told), event] for event in ("on_done", "on_failed")}
    lines = [f"{event} = {json.dumps(words)}" for event, words in command.items()]
    (folder / "here.toml").write_text("\n".join(lines))


def told_of(told: Path) -> list[list[str]]:
    return sorted(json.loads(line) for line in told.read_text().splitlines()) if told.exists() else []


def test_finished_and_failed_folds_are_told(site: Site, tmp_path: Path) -> None:
    told = tmp_path / "told $(touch x); y"
    write_profile(site, told)
    arguments = ("submit", "tiny.toml", "--name", "a b", "--fold", "0,1", "--site", "here", "--wait")
    done = site.run(*arguments)
    assert done.returncode == 0, done.stderr
    eventually(lambda: told_of(told) == [["on_done", "a b", "0"], ["on_done", "a b", "1"]])
    told.unlink()
    failing = site.run("submit", "tiny.toml", "--fold", "2", "--site", "here", "--wait", "-o", "train.lr=1e30")
    assert failing.returncode == 8
    eventually(lambda: told_of(told) == [["on_failed", "tiny", "2"]])
    assert not (site.root / "x").exists()


def test_a_command_that_is_not_there_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fold = Run(tmp_path).fold("0")
    assert start_hook({"on_done": ["/no/such"]}, "on_done", fold) == []
    assert "warning: on_done of the site profile: /no/such: No such file" in capsys.readouterr().err
    assert start_hook({}, "on_failed", fold) == []


def test_a_command_that_this_machine_lacks_is_refused_before_anything_is_made(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(to_toml(make_run().read_config().recipe))
    (tmp_path / "jobs" / "sites").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for profile, said in (
        ('on_done = ["/no/such"]', "on_done of the site here: expected a command or its path, found /no/such"),
        (
            'scheduler = "slurm"\nenvironment = "envs/none.sh"',
            f"expected a script at {tmp_path}/envs/none.sh, found none",
        ),
    ):
        Path("jobs/sites/here.toml").write_text(profile)
        for options in ([], ["--dry-run"]):
            with pytest.raises(RecipeError, match=said):
                cli(["submit", str(recipe), "--name", "new", "--site", "here", *options], standalone_mode=False)
    assert not Path("runs").exists()


def test_a_command_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hooks, "_PATIENCE_S", 0.2)
    started = start_hook(
        {"on_done": [sys.executable, "-c", "import time; time.sleep(1000)"]}, "on_done", Run(tmp_path).fold("0")
    )
    started += start_hook({"on_done": [sys.executable, "-c", ""]}, "on_done", Run(tmp_path).fold("0"))
    finish_hooks(started)
    assert all(hook.returncode is not None for hook in started)
