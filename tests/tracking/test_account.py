"""Server, key, entity and project are found as wandb finds them, and the doctor says what it found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from wandb_server import KEY, WandbServer

from contrails.tracking.account import find_account
from contrails.tracking.check import check_wandb

pytestmark = pytest.mark.usefixtures("nobody")
OTHER = "local-" + "9" * 40


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_nobody_is_offline() -> None:
    account = find_account()
    assert (account.online, account.project, account.destination) == (False, "contrails", "offline")


@pytest.mark.parametrize("name", [".netrc", "_netrc", "elsewhere"])
def test_a_key_counts_for_its_host(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / name, f"machine wandb.example.org:8080\n  login user\n  password {KEY}\n")
    if name == "elsewhere":
        monkeypatch.setenv("NETRC", str(path))
    assert not find_account().online
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.example.org:8080/")
    account = find_account()
    assert (account.key, account.source, account.online) == (KEY, str(path), True)
    assert KEY not in repr(account)
    monkeypatch.setenv("WANDB_API_KEY", OTHER)
    assert (find_account().key, find_account().source) == (OTHER, "WANDB_API_KEY")
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not find_account().online


@pytest.mark.parametrize("host", ["api.wandb.ai", "api.forge.coreweave.com"])
def test_the_public_server_has_two_names(host: str, tmp_path: Path) -> None:
    write(tmp_path / ".netrc", f"machine {host}\n  login user\n  password {KEY}\n")
    assert find_account().key == KEY


def test_settings_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    user = "[default]\nbase_url = http://one.example.org\nentity = team\nproject = theirs\napi_key = " + KEY
    write(tmp_path / ".config" / "wandb" / "settings", user)
    account = find_account()
    assert (account.address, account.entity, account.project) == ("http://one.example.org", "team", "theirs")
    assert (account.key, account.source) == (KEY, "a settings file of wandb")
    write(tmp_path / "wandb" / "settings", "[default]\nproject = here\nmode = offline\n")
    assert (find_account().project, find_account().online) == ("here", False)
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "none"))
    assert (find_account().project, find_account().address) == ("mine", "https://api.wandb.ai")
    write(tmp_path / "wandb" / "settings", "nonsense")
    assert find_account().project == "mine"


@pytest.mark.parametrize("where", ["environment", "netrc", "settings"])
def test_wandb_finds_the_same(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if where == "environment":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    elif where == "netrc":
        write(tmp_path / ".netrc", f"machine 127.0.0.1:9\n  login user\n  password {KEY}\n")
    text = f"api_key = {KEY}\n" if where == "settings" else ""
    write(tmp_path / ".config" / "wandb" / "settings", f"[default]\nbase_url = http://127.0.0.1:9\n{text}")
    code = "import wandb; print(wandb.setup().settings.base_url, wandb.sdk.lib.wbauth.authenticate_session("
    code += "host=wandb.setup().settings.base_url, source='', prompt=False).api_key)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    account = find_account()
    assert done.stdout.split() == [account.address, account.key], done.stderr


def test_the_doctor_names_server_entity_project_and_source(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = check_wandb()
    assert found.holds
    assert found.found == (
        f"{server.url}, project contrails, entity somebody (the key's own), key from WANDB_API_KEY: it answers"
    )
    monkeypatch.setenv("WANDB_ENTITY", "team")
    assert "entity team, key" in check_wandb().found
    monkeypatch.setenv("WANDB_API_KEY", OTHER)
    refused = check_wandb()
    assert not refused.holds
    assert "refuses the key from WANDB_API_KEY (401)" in refused.found
    assert OTHER not in refused.found
    server.stop()
    assert "does not answer" in check_wandb().found


def test_the_doctor_of_a_user_without_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    found = check_wandb()
    assert found.holds
    assert found.found.startswith("offline: no key for https://api.wandb.ai, project contrails; `wandb login --host")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert check_wandb().found.startswith("offline: WANDB_MODE is offline")


@pytest.mark.parametrize("address", ["nonsense", "http://[half", "https://wandb.example.org:port", "file:///etc"])
def test_an_address_that_is_none(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", address)
    found = check_wandb()
    assert not found.holds
    assert f"expected an address such as https://wandb.example.org, found '{address}'" in found.found


def test_a_server_of_something_else(server: WandbServer) -> None:
    server.answers.answer = lambda *_: {"viewer": None}  # type: ignore[method-assign]
    assert "it knows no such user" in check_wandb().found
