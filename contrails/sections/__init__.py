"""Tables of a recipe that are long enough for a file of their own; `contrails.config` puts them together."""
