"""Commands that make and look at data."""
