"""Training of one fold, resumable after every step."""
