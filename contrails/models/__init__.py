"""Networks, built from the words of a recipe."""
