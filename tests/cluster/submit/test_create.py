"""What a new run records of its origin, and the sites that a run can move to."""

from importlib.metadata import version

import pytest
from conftest import MakeRun

from contrails.cluster.schedulers.sites import Site
from contrails.cluster.submit.create import _installed_versions, move
from contrails.errors import RecipeError


def test_the_versions_are_those_of_the_packages_metadata() -> None:
    found = _installed_versions()
    for name in ("torch", "numpy", "pydantic", "segmentation_models_pytorch"):
        assert found[name] == version(name)


def test_a_run_does_not_move_to_more_nodes_than_its_ranks_fill(make_run: MakeRun) -> None:
    run, site = make_run(), Site(name="two", scheduler="slurm", num_ranks=2, num_nodes=2)
    with pytest.raises(RecipeError, match="site two, for run: num_nodes = 2: expected a number that divides num_ranks"):
        move(run, run.read_config(), site)
