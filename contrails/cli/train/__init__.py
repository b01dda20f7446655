"""Commands that start, stop and continue training."""
