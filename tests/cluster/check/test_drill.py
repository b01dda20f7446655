"""The drill: a real run, killed in every way at moments of a random seed."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from contrails.runs.folder import Run

from local_site import Site


@pytest.fixture
def site(tmp_path: Path, tiny_data: Path) -> Iterator[Site]:
    site = Site(tmp_path, tiny_data)
    yield site
    site.end_everything()


@pytest.mark.slow
def test_no_kill_changes_a_bit(site: Site) -> None:
    seed = secrets.randbelow(10**6)
    print("seed", seed)  # noqa: T201 - to repeat a failure
    done = site.run("drill", "--kills", "6", "--seed", str(seed), "--json", seconds=900)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["equal"]
    assert len(outcome["kills"]) == 6
    for kill in outcome["kills"]:
        assert kill["way"].startswith("SIGKILL") or kill["steps_lost"] == 0, kill
    assert [path.name for path in (site.root / "runs").iterdir() if not path.name.startswith(".")] == []


def test_the_recipe_fits_a_site_with_several_ranks(tmp_path: Path) -> None:
    from contrails.cluster.check.drill import small_recipe
    from contrails.inputs.sampling import require_ranks_fit

    require_ranks_fit(small_recipe(tmp_path, 1, num_ranks=4), 4)


def test_a_difference_is_seen(tmp_path: Path) -> None:
    from contrails.cluster.check.drill import result_of
    from contrails.files import append_json_line, to_json, write_atomic

    results = []
    for name, loss in (("one", 0.5), ("other", 0.25)):
        fold = Run(tmp_path / name).fold("0")
        weights = {"final": {"sha256": "0" * 64, "dice": 0.5, "file": f"{name}.safetensors"}}
        write_atomic(fold.done, to_json({"weights": weights, "attempt": 1, "step": 1, "epoch": 1}))
        fold.attempt(1).path.mkdir(parents=True)
        append_json_line(fold.attempt(1).metrics, {"step": 1, "train/loss": loss})
        results.append(result_of(fold))
    assert results[0]["weights"] == results[1]["weights"]
    assert results[0] != results[1]
