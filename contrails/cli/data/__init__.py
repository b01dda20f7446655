"""Commands that make, assign to folds and inspect data."""
