"""The state of folds and their cost; nothing here writes."""
