"""Submitting jobs: their names, the journal, and the frozen code that they run."""
