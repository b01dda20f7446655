"""Commands that make and compare results."""
