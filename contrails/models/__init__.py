"""Networks built from a recipe, their weights files, and checks of a recipe's model."""
