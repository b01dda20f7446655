"""Readers of raw data: each yields records of one layout, to be packed."""
