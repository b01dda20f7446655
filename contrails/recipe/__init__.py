"""A recipe: a table of TOML a file, and what is wrong with one in the project's words."""
