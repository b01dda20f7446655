"""What a job that takes another one's place asks for."""

from contrails.cluster.teardown import _avoided


def test_nodes_are_avoided_for_failures_in_a_row_alone() -> None:
    assert _avoided((), "n1", 1) == ("n1",)
    assert _avoided(("n1",), "n2", 2) == ("n1", "n2")
    assert _avoided(("n1", "n2"), "n3", 3) == ("n1", "n2", "n3")
    assert _avoided(("n1", "n2"), "n3", 1) == ("n3",)  # there was a new snapshot between
