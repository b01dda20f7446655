"""Where and how the folds of a run are started."""
