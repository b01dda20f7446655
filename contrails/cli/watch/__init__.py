"""Commands that show what is training."""
