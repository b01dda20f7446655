"""Commands that show recipes and start, stop and continue training."""
