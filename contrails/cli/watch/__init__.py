"""Commands that follow what trains."""
