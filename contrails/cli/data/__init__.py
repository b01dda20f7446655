"""Commands that make data, assign them to folds, and inspect them."""
