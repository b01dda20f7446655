"""The large tables of a recipe, a file each; `contrails.config` puts them together."""
