"""Members: weights of finished folds, and what each of them predicts."""
