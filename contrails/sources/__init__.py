"""Readers of raw data: each makes a plan of the records of one layout, to be packed."""
