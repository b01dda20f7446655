"""Commands that make, show and compare results."""
