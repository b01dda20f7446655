"""The run folder: its paths, its frozen configuration, and the metrics of its folds."""
