"""Synthetic datasets, for the demo and for tests."""
