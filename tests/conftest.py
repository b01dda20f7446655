"""What all tests share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with a few real OpenContrails records; it lies beside the clone where somebody put it."""
    path = Path(__file__).parents[2] / "shared" / "data" / "opencontrails"
    if not path.is_dir():
        pytest.skip(f"no real records at {path}: the same is tested on synthetic ones")
    return path
