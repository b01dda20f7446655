"""Places of a machine: all that a job needs or none, freed with the last process that has them."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contrails.cluster import places
from contrails.cluster.places import take_places

from local_site import eventually


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_RETRY_S", 0.01)


def take(folder: Path, num_places: int, wanted: int) -> dict[int, int]:
    return take_places(folder, num_places, wanted, lambda: False)


def free(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_job_that_waits_for_two_places_holds_none(tmp_path: Path, left: int) -> None:
    held = take(tmp_path, 3, 3)
    free(held.pop(left))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(take, tmp_path, 3, 2)
        for _ in range(20):
            other = take(tmp_path, 3, 1)
            assert list(other) == [left]
            free(*other.values())
        assert not waiting.done()
        number, descriptor = held.popitem()
        free(descriptor)
        both = waiting.result(timeout=30)
    assert sorted(both) == sorted([left, number])
    free(*held.values(), *both.values())


def test_a_place_lasts_as_long_as_a_child_that_inherited_it(tmp_path: Path) -> None:
    (descriptor,) = take(tmp_path, 1, 1).values()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[descriptor]) as child:
        free(descriptor)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(take, tmp_path, 1, 1)
            assert child.poll() is None
            assert not waiting.done()
            child.kill()
            eventually(waiting.done, 30)
            free(*waiting.result().values())


def test_who_gives_up_gets_none_and_leaves_them_all(tmp_path: Path) -> None:
    held = take(tmp_path, 2, 1)
    assert take_places(tmp_path, 2, 2, lambda: True) == {}
    other = take_places(tmp_path, 2, 1, lambda: True)  # what is free is not given up
    assert len(other) == 1
    free(*held.values(), *other.values())
