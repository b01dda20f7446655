"""The run folder: its paths, what it was made of, and the metrics of its folds."""
