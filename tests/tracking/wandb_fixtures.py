"""A finished fold of a user without a key, and a W&B server on this machine with a key for it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from wandb_server import KEY, WandbServer

from contrails.runs.folder import Fold, Run


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Take keys and settings of whoever runs the tests away."""
    for name in ("API_KEY", "BASE_URL", "ENTITY", "PROJECT", "MODE", "DIR", "CONFIG_DIR"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def trained(make_run: Callable[..., Run], tmp_path: Path, nobody: None, restore_process: None) -> Fold:
    """A finished fold."""
    from contrails.train.fold import train_fold

    fold, once = make_run("Läufe ü").fold("0"), tmp_path.parent / "projected"
    if not once.exists():
        train_fold(fold)
        shutil.copytree(fold.path, once)
    else:
        shutil.copytree(once, fold.path)
    return fold


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, nobody: None) -> Iterator[WandbServer]:
    """A server, whose address and key the environment names."""
    server = WandbServer()
    server.start()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield server
    server.stop()


@contextmanager
def as_at_step_8(fold: Fold) -> Iterator[None]:
    """Have a finished fold look as it did when step 8 was its last snapshot."""
    away = [fold.done, *(name.path for name in fold.all_snapshots() if name.step > 8)]
    contents = [(path, path.read_bytes()) for path in away]
    for path in away:
        path.unlink()
    yield
    for path, content in contents:
        path.write_bytes(content)
