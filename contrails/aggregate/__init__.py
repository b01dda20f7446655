"""From the weights of folds to an ensemble and a submission."""
