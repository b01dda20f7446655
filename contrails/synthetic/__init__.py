"""Scenes and images made here, for the demo and for tests."""
