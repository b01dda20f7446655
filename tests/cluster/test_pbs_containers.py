"""A fold on PBS whose job runs in a container that has none of PBS's commands."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import image_folder
from fake_pbs import FakePbs
from pbs_runs import PbsRuns

pytestmark = [pytest.mark.slow, pytest.mark.fake_pbs]


@pytest.fixture
def site(tmp_path: Path, tiny_data: Path) -> Iterator[PbsRuns]:
    if (missing := image_folder.why_not()) is not None:
        pytest.skip(missing)
    fake = FakePbs(tmp_path / "server", history=True)
    (tmp_path / "user").mkdir()
    site = PbsRuns(tmp_path / "user", tiny_data, fake)
    site.profile("test", **image_folder.make_image(site.root / "image"))
    yield site
    site.end_everything()
    fake.stop()


def test_the_next_link_of_a_chain_is_submitted_from_inside(site: PbsRuns) -> None:
    site.submit("inside", "-o", "train.epochs=20")
    fold = site.fold("0", "inside")
    site.wait_for_snapshot(fold)
    os.kill(site.pid("inside"), signal.SIGUSR2)
    site.wait_for_done("inside")
    assert site.ends("inside") == ["preemption", ""]
    assert len(site.links("inside")) == 2
