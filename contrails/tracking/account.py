"""The W&B server, account and project that `contrails sync` sends to, found as wandb does but without importing it.

The environment precedes settings files; those of the current folder precede those of the user. The key is
`WANDB_API_KEY`, else the netrc entry for the server's host, else the key in a settings file.
"""

import configparser
import netrc
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from contrails.errors import TrackingError

PROJECT = "contrails"
_SAAS = ("api.wandb.ai", "api.forge.coreweave.com")
"""Host names of the public server: wandb before version 0.31 stores the key under the first, then under the second."""
_NOT_ONLINE = {"offline", "dryrun", "disabled"}


@dataclass(frozen=True)
class Account:
    """The account that was found; `source` says where the key was found."""

    address: str
    project: str
    entity: str | None = None
    mode: str = "online"
    source: str | None = None
    key: str | None = field(default=None, repr=False)

    @property
    def online(self) -> bool:
        return self.key is not None and self.mode not in _NOT_ONLINE

    @property
    def destination(self) -> str:
        """Text that changes if rows are sent to another place."""
        return "/".join((self.address, self.entity or "", self.project)) if self.online else "offline"

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which wandb finds the same account."""
        found = {"WANDB_PROJECT": self.project, "WANDB_MODE": "online" if self.online else "offline"}
        return (
            found
            | ({"WANDB_BASE_URL": self.address, "WANDB_API_KEY": self.key or ""} if self.online else {})
            | ({"WANDB_ENTITY": self.entity} if self.entity else {})
        )


def find_account() -> Account:
    """Return the account that `contrails sync` uses."""
    files = _settings()

    def setting(name: str) -> str | None:
        return os.environ.get(f"WANDB_{name.upper()}") or files.get(name)

    address = (setting("base_url") or f"https://{_SAAS[0]}").rstrip("/")
    source, key = _key(address, files)
    return Account(address, setting("project") or PROJECT, setting("entity"), setting("mode") or "online", source, key)


def require_address(address: str) -> None:
    """Check that a text is the address of a server.

    Raises:
        TrackingError: it is not.
    """
    try:
        url = urlsplit(address)
        valid = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise TrackingError(
            f"expected an address such as https://wandb.example.org, found '{address}'; correct WANDB_BASE_URL, or "
            "base_url in a settings file of wandb"
        )


def _key(address: str, files: dict[str, str]) -> tuple[str | None, str | None]:
    """Return where the key of a server was found, and the key."""
    if key := os.environ.get("WANDB_API_KEY"):
        return "WANDB_API_KEY", key
    path, host = _netrc_path(), address.partition("://")[2].partition("/")[0]
    try:
        entries = netrc.netrc(path)
    except (OSError, netrc.NetrcParseError):
        entries = None
    for name in dict.fromkeys((host, *(_SAAS if host in _SAAS else ()))):
        if entries is not None and (found := entries.authenticators(name)) and found[2]:
            return str(path), found[2]
    if key := files.get("api_key"):
        return "a settings file of wandb", key
    return None, None


def _netrc_path() -> Path:
    if given := os.environ.get("NETRC"):
        return Path(given).expanduser()
    usual = [Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()]
    return next((path for path in usual if path.exists()), usual[0])


def _settings() -> dict[str, str]:
    """Return the content of wandb's settings files, those of the current folder last."""
    root = Path(os.environ.get("WANDB_DIR") or ".")
    folder = root / (".wandb" if (root / ".wandb").exists() else "wandb")
    user = Path(os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb").expanduser()
    found: dict[str, str] = {}
    for path in (user / "settings", folder / "settings"):
        parser = configparser.ConfigParser()
        try:
            parser.read(path)
            found |= dict(parser.items("default")) if parser.has_section("default") else {}
        except (OSError, UnicodeDecodeError, configparser.Error):  # wandb ignores such a file too
            continue
    return found
