"""Making an ensemble and a submission from the weights of finished folds."""
