"""Submitting the folds of a run as jobs, running them, and reporting their state."""
