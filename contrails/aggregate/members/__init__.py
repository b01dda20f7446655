"""Members: choosing weights of finished folds, and predicting with them."""
