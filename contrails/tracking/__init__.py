"""Projections of the metrics into other tools."""
