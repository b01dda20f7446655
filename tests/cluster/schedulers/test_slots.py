"""Slots of a machine: all that a job needs or none, freed with the last process that has them; one for each GPU."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from contrails.cluster.schedulers import slots
from contrails.cluster.schedulers.sites import Site
from contrails.cluster.schedulers.slots import DEVICES, Slot, slots_of, take_slots
from contrails.errors import NodeError
from contrails.runs.config import ComputeSection
from contrails.runs.folder import Run

from local_site import eventually


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "_RETRY_S", 0.01)


def all_of(folder: Path, count: int) -> list[Slot]:
    return [Slot(folder / f"{number}.lock") for number in range(count)]


def take(folder: Path, count: int, wanted: int) -> dict[int, int]:
    """Return the descriptors by the number of the slot."""
    taken = take_slots(all_of(folder, count), wanted, lambda: False)
    return {int(slot.lock.stem): descriptor for slot, descriptor in taken.items()}


def free(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_job_that_waits_for_two_slots_holds_none(tmp_path: Path, left: int) -> None:
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


def test_a_slot_lasts_as_long_as_a_child_that_inherited_it(tmp_path: Path) -> None:
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
    assert take_slots(all_of(tmp_path, 2), 2, lambda: True) == {}
    other = take_slots(all_of(tmp_path, 2), 1, lambda: True)  # what is free is not given up
    assert len(other) == 1
    free(*held.values(), *other.values())


@pytest.mark.parametrize(
    ("site", "num_ranks", "devices"),
    [
        ({}, 1, ["GPU-a", "GPU-b", "MIG-GPU-c/1/0"]),
        ({"folds_at_a_time": 2}, 1, ["GPU-a", "GPU-b"]),
        ({"folds_at_a_time": 5}, 1, ["GPU-a", "GPU-b", "MIG-GPU-c/1/0", "GPU-a", "GPU-b"]),
        ({"folds_at_a_time": 2}, 2, ["GPU-a", "GPU-b", "MIG-GPU-c/1/0"]),  # no two ranks on one
    ],
)
def test_gpus_are_slots_of_their_own_and_shared_where_the_profile_says_so(
    tmp_path: Path, site: dict[str, int], num_ranks: int, devices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(DEVICES, "GPU-a,GPU-b,MIG-GPU-c/1/0")
    compute = ComputeSection(device="cuda", num_threads=1, num_ranks=num_ranks)
    found = slots_of(Run(tmp_path / "runs" / "first"), Site(name="local", **site), compute)
    assert [slot.device for slot in found] == devices
    assert len({slot.lock for slot in found}) == len(found)
    free(*take_slots(found, len(found), lambda: True).values())


def test_shells_with_overlapping_lists_share_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    taken: list[dict[Slot, int]] = []
    for root, devices in (("one", "GPU-a,GPU-b"), ("two", "GPU-b,GPU-c"), ("three", "GPU-a,GPU-c")):
        monkeypatch.setenv(DEVICES, devices)
        run, compute = Run(tmp_path / root / "run"), ComputeSection(device="cuda", num_threads=1)
        taken.append(take_slots(slots_of(run, Site(name="local"), compute), 2 if root == "one" else 1, lambda: True))
    assert [[slot.device for slot in each] for each in taken] == [["GPU-a", "GPU-b"], ["GPU-c"], []]
    free(*(descriptor for each in taken for descriptor in each.values()))


def test_too_few_gpus_for_the_ranks_of_a_fold_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICES, "GPU-a")
    compute = ComputeSection(device="cuda", num_threads=1, num_ranks=2)
    with pytest.raises(NodeError, match="expected 2 GPUs for a fold, found GPU-a"):
        slots_of(Run(tmp_path / "run"), Site(name="local"), compute)
