"""Creating runs, and submitting and cancelling their folds."""
