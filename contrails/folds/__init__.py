"""Who trains on what: file lists, exclusions, pseudo-labels."""
