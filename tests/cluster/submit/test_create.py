"""What a new run records of its origin."""

from importlib.metadata import version

from contrails.cluster.submit.create import _installed_versions


def test_the_versions_are_those_of_the_packages_metadata() -> None:
    found = _installed_versions()
    for name in ("torch", "numpy", "pydantic", "segmentation_models_pytorch"):
        assert found[name] == version(name)
