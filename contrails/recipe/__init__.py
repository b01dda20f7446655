"""Recipes: one module per table of the TOML file, reading, and error messages."""
