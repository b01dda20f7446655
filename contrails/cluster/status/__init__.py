"""What became of folds, and what they cost; nothing here writes."""
