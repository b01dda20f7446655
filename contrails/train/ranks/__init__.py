"""Several processes that train one fold together."""
