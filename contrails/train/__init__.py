"""Training of one fold, resumable at every step."""
